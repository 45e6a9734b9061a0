-- Jobs that nobody runs and whose sequence is over its deadline, or that had to begin by now.
with over as materialized (
    select l.lane, l.sequence_id
    from /* schema */live_job l
    where l.lane = any(%(lanes)s::smallint[]) and l.leased_by is null and l.doom is null and (l.expires_at is not null or l.deadline_at is not null)
        and least(l.expires_at, l.deadline_at) <= (select clock_timestamp())
)
select l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.attempt, coalesce(l.deadline_at <= clock_timestamp(), false)
from over join /* schema */live_job l on l.lane = over.lane and l.sequence_id = over.sequence_id
where l.leased_by is null and l.doom is null
    and (l.deadline_at <= clock_timestamp() or (l.expires_at <= clock_timestamp() and l.position = 0 and l.attempt = 0))
order by l.lane, l.sequence_id
limit %(limit)s
for no key update of l skip locked
