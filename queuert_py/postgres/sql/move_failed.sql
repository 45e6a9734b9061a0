-- Second half of revive_failed: the failed row becomes an entry of the attempt log.
with gone as (
    delete from /* schema */finished_job f
    using jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
    where f.lane = r.lane and f.sequence_id = r.sequence_id and f.outcome = 'failed'
    returning f.*
)
insert into /* schema */attempt_log (lane, sequence_id, position, epoch, outcome, attempt, crash_count, type, error, started_at, worker)
select lane, sequence_id, position, epoch, 'retried', attempt, crash_count, type, last_error, started_at, finished_by
from gone
on conflict do nothing
