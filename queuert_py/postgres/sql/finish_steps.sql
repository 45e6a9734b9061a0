-- First half of advancing: the job that continues becomes history. advance_jobs follows in the same transaction.
insert into /* schema */finished_job (
    lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, outcome, reason, output,
    output_type, attempt, crash_count, epoch, key, correlation_id, tags, trace_context, last_error, blocker_count, max_attempts, backoff,
    timeout, created_at, sequence_created_at, started_at, finished_at, finished_by
)
select l.lane, l.sequence_id, l.position, l.job_id, l.root_id, l.origin_id, l.sequence_type, l.type, l.queue, l.priority, l.run_at, l.input,
    'continued', null, null, null, l.attempt, l.crash_count, l.epoch, null, l.correlation_id, l.tags, l.trace_context, null, l.blocker_count,
    l.max_attempts, l.backoff, l.timeout, l.created_at, l.sequence_created_at, l.leased_at, clock_timestamp(), l.leased_by
from jsonb_to_recordset(%(rows)s::jsonb) as step (lane smallint, sequence_id uuid, epoch bigint)
join /* schema */live_job l on l.lane = step.lane and l.sequence_id = step.sequence_id
where l.epoch = step.epoch
order by l.lane, l.sequence_id
for no key update of l skip locked
