-- Attempts that give their job back: to be retried, snoozed, released or lost. `charge` and `crash` are added to the counters. One with an
-- outcome had begun, so that its `expires` is met.
with setback as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as d (
        lane smallint, sequence_id uuid, epoch bigint, delay interval, at timestamptz, charge integer, crash integer, outcome text,
        error jsonb
    )
), mine as materialized (
    select l.lane, l.sequence_id, l.leased_by as worker,
        setback.delay, setback.at, setback.charge, setback.crash, setback.outcome, setback.error
    from setback join /* schema */live_job l on l.lane = setback.lane and l.sequence_id = setback.sequence_id
    where l.epoch = setback.epoch and l.leased_by is not null
    order by l.lane, l.sequence_id
    for no key update of l skip locked
), back as (
    update /* schema */live_job l
    set leased_by = null, leased_until = null, claim_token = null, begun = false, epoch = l.epoch + 1,
        memo = l.memo - array['waiting', 'sleeping'], expires_at = case when mine.outcome is null then l.expires_at end,
        attempt = l.attempt + mine.charge, crash_count = l.crash_count + mine.crash, last_error = coalesce(mine.error, l.last_error),
        run_at = case
            when mine.delay is null and mine.at is null then l.run_at
            else greatest(clock_timestamp(), mine.at, clock_timestamp() + mine.delay)
        end
    from mine
    where l.lane = mine.lane and l.sequence_id = mine.sequence_id
    returning l.lane, l.sequence_id, l.position, l.epoch, l.attempt - mine.charge as attempt, l.crash_count, l.type, l.leased_at, l.queue,
        l.priority, l.run_at, mine.outcome, mine.error, mine.worker
), logged as (
    insert into /* schema */attempt_log (
        lane, sequence_id, position, epoch, outcome, attempt, crash_count, type, error, started_at, worker
    )
    select lane, sequence_id, position, epoch - 1, outcome, attempt, crash_count, type, error, leased_at, worker
    from back
    where outcome is not null
)
select sequence_id::text, lane, queue, priority, type, extract(epoch from run_at - clock_timestamp())::float8 from back
