-- Keyed starts take the place of those that wait, under their ids: only of first jobs that have never begun. Their rows are locked already.
with start as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as r (
        lane smallint, holder uuid, queue text, priority smallint, at timestamptz, delay interval, input jsonb, correlation_id text,
        tags text[], max_attempts integer, backoff jsonb, timeout interval, expires_at timestamptz, expires interval, deadline_at timestamptz,
        deadline interval, open_blockers integer, blocker_count integer, on_blocker_failure text, doom jsonb
    )
), waiting as materialized (
    select l.lane, l.sequence_id
    from start join /* schema */live_job l on l.lane = start.lane and l.sequence_id = start.holder
    where l.position = 0 and l.leased_by is null and l.attempt = 0
        and coalesce(l.memo - 'events', '{}') = '{}' -- one that sleeps or waits has begun, one that gave its job back has logged it
        and not exists (select from /* schema */attempt_log a where a.lane = l.lane and a.sequence_id = l.sequence_id)
    order by l.lane, l.sequence_id
    for no key update of l
)
update /* schema */live_job l
set input = r.input, queue = r.queue, priority = r.priority, run_at = greatest(clock_timestamp(), r.at, clock_timestamp() + r.delay),
    epoch = l.epoch + 1, correlation_id = r.correlation_id, tags = r.tags, max_attempts = r.max_attempts, backoff = r.backoff, timeout = r.timeout,
    expires_at = coalesce(r.expires_at, clock_timestamp() + r.expires), deadline_at = coalesce(r.deadline_at, clock_timestamp() + r.deadline),
    open_blockers = coalesce(r.open_blockers, 0), blocker_count = coalesce(r.blocker_count, 0),
    on_blocker_failure = r.on_blocker_failure, doom = r.doom
from waiting join start r on r.lane = waiting.lane and r.holder = waiting.sequence_id
where l.lane = waiting.lane and l.sequence_id = waiting.sequence_id
returning l.sequence_id::text
