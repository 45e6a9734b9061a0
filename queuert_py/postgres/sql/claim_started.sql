-- Lease these sequences' jobs to this worker if they are ready: in the transaction of their start, or when their time has come.
-- A claim whose answer was lost is taken again by its token. Returns what claim_jobs returns.
with ready as materialized (
    select l.lane, l.sequence_id
    from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
    join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
    where l.open_blockers = 0 and l.type = any(%(types)s::text[])
        and (
            (l.leased_by is null and l.run_at <= (select clock_timestamp()))
            or (l.leased_by = %(worker)s and l.claim_token = %(token)s)
        )
        and not exists (select from /* schema */queue q where q.name = l.queue and q.paused)
    order by l.lane, l.sequence_id
    for no key update of l skip locked
)
update /* schema */live_job l
set leased_by = %(worker)s, leased_at = clock_timestamp(), leased_until = clock_timestamp() + %(lease)s, claim_token = %(token)s,
    attempt = l.attempt + (l.leased_by is null)::int, epoch = l.epoch + 1, begun = l.crash_count < %(suspect)s
from ready
where l.lane = ready.lane and l.sequence_id = ready.sequence_id
returning l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.input::text, l.attempt, l.crash_count, l.begun, l.watched,
    l.blocker_count, l.queue, l.priority, l.run_at, l.expires_at <= clock_timestamp() and l.position = 0 and l.attempt = 1,
    l.max_attempts, l.timeout, case when l.position > 0 then l.job_id::text end, nullif(l.root_id, l.sequence_id)::text, l.origin_id::text,
    l.correlation_id, l.tags, l.doom::text, extract(epoch from l.deadline_at - clock_timestamp())::float8, l.memo::text, l.backoff::float8
