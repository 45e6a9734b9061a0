-- Jobs that nobody runs and whose sequence is over its deadline, or that had to begin by now; and of the types `mute`, which no worker takes
-- and whose failure nobody answers, those that have failed already.
with over as materialized (
    select l.lane, l.sequence_id
    from /* schema */live_job l
    where l.lane = any(%(lanes)s::smallint[]) and l.leased_by is null and l.doom is null and (l.expires_at is not null or l.deadline_at is not null)
        and least(l.expires_at, l.deadline_at) <= (select clock_timestamp())
    union all
    select l.lane, l.sequence_id
    from /* schema */live_job l
    where l.lane = any(%(lanes)s::smallint[]) and l.type = any(%(mute)s::text[]) and l.doom is not null
)
select l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.attempt, coalesce(l.deadline_at <= clock_timestamp(), false), l.doom::text
from over join /* schema */live_job l on l.lane = over.lane and l.sequence_id = over.sequence_id
where l.leased_by is null and case
    when l.doom is not null then l.type = any(%(mute)s::text[])
    else l.deadline_at <= clock_timestamp() or (l.expires_at <= clock_timestamp() and l.position = 0 and l.attempt = 0)
end
order by l.lane, l.sequence_id
limit %(limit)s
for no key update of l skip locked
