-- The jobs whose worker is gone or whose lease has ended. The leased rows are few: leased_until needs no index.
select l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.attempt, l.crash_count, l.begun, l.max_attempts, l.leased_by
from /* schema */live_job l
where l.lane = any(%(lanes)s::smallint[]) and l.leased_by is not null
    and (l.leased_by = any(%(gone)s::text[]) or l.leased_until <= (select clock_timestamp()))
order by l.lane, l.sequence_id
limit %(limit)s
for no key update skip locked
