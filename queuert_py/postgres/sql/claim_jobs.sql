-- Lease up to `limit` ready jobs to this worker, by the scans' order. The first `slots` of them begin at once (suspects excepted).
-- The lateral's outer limit stops the scan: no more rows are locked than returned. The sub-select makes the clock an index bound; that of
-- the pause, unlike a join, keeps the order of the scans in every plan.
with ready as materialized (
    select found.lane, found.sequence_id
    from jsonb_to_recordset(%(scans)s::jsonb) as scan (lane smallint, queue text, priority smallint, since timestamptz)
    cross join lateral (
        select l.lane, l.sequence_id
        from /* schema */live_job l
        where l.lane = scan.lane and l.queue = scan.queue and l.priority = scan.priority
            and l.run_at >= scan.since and l.run_at <= (select clock_timestamp())
            and l.leased_by is null and l.open_blockers = 0 and l.type = any(%(types)s::text[])
        order by l.run_at, l.sequence_id
        limit %(limit)s
        for no key update skip locked
    ) found
    where (select q.paused from /* schema */queue q where q.name = scan.queue) is not true
    limit %(limit)s
), numbered as (
    select lane, sequence_id, row_number() over () as number from ready
)
update /* schema */live_job l
set leased_by = %(worker)s, leased_at = clock_timestamp(), leased_until = clock_timestamp() + %(lease)s, claim_token = %(token)s,
    attempt = l.attempt + 1, epoch = l.epoch + 1, begun = numbered.number <= %(slots)s and l.crash_count < %(suspect)s
from numbered
where l.lane = numbered.lane and l.sequence_id = numbered.sequence_id
returning l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.input::text, l.attempt, l.crash_count, l.begun, l.watched,
    l.blocker_count, l.queue, l.priority, l.run_at, l.expires_at <= clock_timestamp() and l.position = 0 and l.attempt = 1,
    l.max_attempts, l.timeout, case when l.position > 0 then l.job_id::text end, nullif(l.root_id, l.sequence_id)::text, l.origin_id::text,
    l.correlation_id, l.tags, l.doom::text, extract(epoch from l.deadline_at - clock_timestamp())::float8, l.memo::text, l.backoff::float8
