-- The priorities in use of each queue and, for each, the seconds until its first waiting job is due (0 or less: now), and until the first
-- that is not due yet: what is due already may be of a type that the worker does not serve.
-- A loose index scan: two probes of the ready index a priority.
with recursive level as (
    select scan.lane, scan.queue, (
        select l.priority from /* schema */live_job l
        where l.lane = scan.lane and l.queue = scan.queue and l.leased_by is null and l.open_blockers = 0
        order by l.priority desc limit 1
    ) as priority
    from jsonb_to_recordset(%(queues)s::jsonb) as scan (lane smallint, queue text)
    union all
    select level.lane, level.queue, (
        select l.priority from /* schema */live_job l
        where l.lane = level.lane and l.queue = level.queue and l.leased_by is null and l.open_blockers = 0
            and l.priority < level.priority
        order by l.priority desc limit 1
    )
    from level
    where level.priority is not null
)
select level.lane, level.queue, level.priority, (
    select extract(epoch from l.run_at - clock_timestamp())::float8 from /* schema */live_job l
    where l.lane = level.lane and l.queue = level.queue and l.priority = level.priority
        and l.leased_by is null and l.open_blockers = 0
    order by l.run_at, l.sequence_id limit 1
) as due, (
    select extract(epoch from l.run_at - clock_timestamp())::float8 from /* schema */live_job l
    where l.lane = level.lane and l.queue = level.queue and l.priority = level.priority
        and l.leased_by is null and l.open_blockers = 0 and l.run_at > (select clock_timestamp())
    order by l.run_at, l.sequence_id limit 1
) as ahead
from level
where level.priority is not null
