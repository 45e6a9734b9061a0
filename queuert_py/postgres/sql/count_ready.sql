-- How many jobs of these queues and types could run now; counting ends at `most`.
select count(*)::int
from (
    select
    from /* schema */live_job l
    where l.lane = any(%(lanes)s::smallint[]) and l.queue = any(%(queues)s::text[]) and l.leased_by is null and l.open_blockers = 0
        and l.run_at <= (select clock_timestamp()) and l.type = any(%(types)s::text[])
        and not exists (select from /* schema */queue q where q.name = l.queue and q.paused)
    limit %(most)s
) ready
