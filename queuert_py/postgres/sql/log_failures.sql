-- Attempts that failed for good and whose job was answered by a compensating one, in the transaction that goes on with that.
insert into /* schema */attempt_log (lane, sequence_id, position, epoch, outcome, attempt, crash_count, type, error, started_at, worker)
select f.lane, f.sequence_id, f.position, f.epoch, 'failed', f.attempt, f.crash_count, f.type, r.error, f.started_at, f.finished_by
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, position integer, epoch bigint, error jsonb)
join /* schema */finished_job f
    on f.lane = r.lane and f.sequence_id = r.sequence_id and f.position = r.position and f.epoch = r.epoch
on conflict do nothing
