-- The jobs whose worker is gone or whose lease has ended: found by the index of leased rows, then locked in order (null without a lease).
with lost as materialized (
    select l.lane, l.sequence_id
    from /* schema */live_job l
    where l.lane = any(%(lanes)s::smallint[]) and l.leased_by is not null
        and (l.leased_by = any(%(gone)s::text[]) or l.leased_until <= (select clock_timestamp()))
)
select l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.attempt, l.crash_count, l.begun, l.max_attempts, l.backoff::float8, l.leased_by
from lost join /* schema */live_job l on l.lane = lost.lane and l.sequence_id = lost.sequence_id
where l.leased_by = any(%(gone)s::text[]) or l.leased_until <= (select clock_timestamp())
order by l.lane, l.sequence_id
limit %(limit)s
for no key update of l skip locked
