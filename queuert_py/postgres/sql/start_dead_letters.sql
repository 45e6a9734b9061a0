-- Dead letters of jobs whose failure this very transaction has written (xmin): a batch that is written again starts none.
insert into /* schema */live_job (
    lane, sequence_id, job_id, root_id, origin_id, sequence_type, type, queue, priority, input, correlation_id, tags, timeout,
    expires_at, deadline_at
)
select r.lane, r.sequence_id, r.sequence_id, r.root_id, r.origin_id, r.type, r.type, r.queue, r.priority, r.input, r.correlation_id,
    r.tags, r.timeout, clock_timestamp() + r.expires, clock_timestamp() + r.deadline
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    lane smallint, sequence_id uuid, root_id uuid, origin_id uuid, type text, queue text, priority smallint, input jsonb,
    correlation_id text, tags text[], timeout interval, expires interval, deadline interval,
    failed_lane smallint, failed_id uuid, failed_position integer, failed_epoch bigint
)
join /* schema */finished_job f on f.lane = r.failed_lane and f.sequence_id = r.failed_id and f.position = r.failed_position
where f.epoch = r.failed_epoch and f.outcome = 'failed' and f.xmin = pg_current_xact_id()::xid
on conflict do nothing
returning lane, queue, priority, type
