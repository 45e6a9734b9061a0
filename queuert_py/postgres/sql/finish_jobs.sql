-- Completions that nobody waits for, in one statement. A row that is not returned is locked, watched or lost: end_jobs decides.
with done as (
    select * from jsonb_to_recordset(%(rows)s::jsonb)
        as d (lane smallint, sequence_id uuid, epoch bigint, output jsonb, output_type text)
), mine as materialized (
    select l.lane, l.sequence_id, done.output, done.output_type
    from done join /* schema */live_job l on l.lane = done.lane and l.sequence_id = done.sequence_id
    where l.epoch = done.epoch and not l.watched
    order by l.lane, l.sequence_id
    for no key update of l skip locked
), gone as (
    delete from /* schema */live_job l using mine
    where l.lane = mine.lane and l.sequence_id = mine.sequence_id
    returning l.*, mine.output, mine.output_type
)
insert into /* schema */finished_job (
    lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, outcome, reason, output,
    output_type, attempt, crash_count, epoch, key, correlation_id, tags, trace_context, last_error, blocker_count, max_attempts, backoff,
    timeout, created_at, sequence_created_at, started_at, finished_at, finished_by
)
select lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, 'completed', null, output,
    output_type, attempt, crash_count, epoch, key, correlation_id, tags, trace_context, null, blocker_count, max_attempts, backoff,
    timeout, created_at, sequence_created_at, leased_at, clock_timestamp(), leased_by
from gone
returning sequence_id::text
