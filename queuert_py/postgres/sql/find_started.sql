-- Unfinished sequences that the handlers of these have started, or of what those started: of the same root, and by way of their origins.
-- The first job of a sequence says by which job it was started; a job after the first is found by its own index.
with recursive given as materialized (
    select r.lane, r.sequence_id from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
), root as materialized (
    select f.root_id from given g join /* schema */finished_job f on f.lane = g.lane and f.sequence_id = g.sequence_id
    union
    select l.root_id from given g join /* schema */live_job l on l.lane = g.lane and l.sequence_id = g.sequence_id
), up as (
    select l.lane, l.sequence_id, l.root_id, l.lane as at_lane, l.sequence_id as at_id
    from root
    cross join lateral (
        select * from /* schema */live_job l
        where l.lane = any(%(lanes)s::smallint[]) and l.root_id = root.root_id and l.root_id <> l.sequence_id
        offset 0  -- row by row, through the index of trees
    ) l
    union
    select up.lane, up.sequence_id, up.root_id, parent.lane, parent.sequence_id
    from up
    cross join lateral (
        select l.origin_id from /* schema */live_job l
        where l.lane = up.at_lane and l.sequence_id = up.at_id and l.position = 0
        union all
        select f.origin_id from /* schema */finished_job f
        where f.lane = up.at_lane and f.sequence_id = up.at_id and f.position = 0
    ) first
    cross join lateral (
        select j.lane, j.sequence_id from /* schema */job j
        where j.lane = any(%(lanes)s::smallint[]) and j.sequence_id = first.origin_id
        union
        select j.lane, j.sequence_id from /* schema */job j
        where j.lane = any(%(lanes)s::smallint[]) and j.position > 0 and j.job_id = first.origin_id
    ) parent
)
select distinct up.lane, up.sequence_id::text
from up
where exists (select from given g where g.sequence_id in (up.at_id, up.root_id))
    and not exists (select from given g where g.sequence_id = up.sequence_id)
