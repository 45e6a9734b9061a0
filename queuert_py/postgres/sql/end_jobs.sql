-- Endings of every kind, watched or not. What somebody holds is left out, also who is about to wait for it (`for update`: against
-- lock_blockers). The next statement of the same transaction unblocks the dependents of what completed.
with done as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as d (
        lane smallint, sequence_id uuid, epoch bigint, outcome text, reason text, output jsonb, output_type text, error jsonb,
        key text, charge integer
    )
), mine as materialized (
    select l.lane, l.sequence_id, done.outcome, done.reason, done.output, done.output_type, done.error,
        done.key as let_go, done.charge
    from done join /* schema */live_job l on l.lane = done.lane and l.sequence_id = done.sequence_id
    where l.epoch = done.epoch
    order by l.lane, l.sequence_id
    for update of l skip locked
), gone as (
    delete from /* schema */live_job l using mine
    where l.lane = mine.lane and l.sequence_id = mine.sequence_id
    returning l.*, mine.outcome, mine.reason, mine.output, mine.output_type, mine.error, mine.let_go, coalesce(mine.charge, 0) as charge
), kept as (
    insert into /* schema */finished_job (
        lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, outcome, reason, output,
    output_type, attempt, crash_count, epoch, key, correlation_id, tags, trace_context, last_error, blocker_count, max_attempts, backoff,
    timeout, created_at, sequence_created_at, started_at, finished_at, finished_by, memo, on_blocker_failure, deadline_at
    )
    select lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, outcome, reason, output,
        output_type, attempt + charge, crash_count, epoch, coalesce(key, let_go), correlation_id, tags, trace_context,
        case when outcome <> 'completed' then coalesce(error, last_error) end,
        blocker_count, max_attempts, backoff, timeout, created_at, sequence_created_at, leased_at, clock_timestamp(), leased_by,
        case when outcome = 'failed' then memo end, on_blocker_failure, case when outcome = 'failed' then deadline_at end
    from gone
), logged as (
    insert into /* schema */attempt_log (
        lane, sequence_id, position, epoch, outcome, attempt, crash_count, type, error, started_at, worker, reason
    )
    select lane, sequence_id, position, epoch, case when charge = 0 then 'failed' else 'validation' end, attempt, crash_count, type, error,
        leased_at, leased_by, coalesce(reason, 'error')
    from gone
    where outcome = 'failed'
)
select sequence_id::text, watched from gone
