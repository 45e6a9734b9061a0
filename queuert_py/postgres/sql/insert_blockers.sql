-- The edges of jobs to what they wait for. One that is there already and was counted (a blocker that was ignored, and runs again) is opened.
with edge as materialized (
    select *
    from jsonb_to_recordset(%(rows)s::jsonb) as r (
        blocker_lane smallint, blocker_id uuid, lane smallint, sequence_id uuid, position integer, ordinal integer, counted boolean
    )
), opened as (
    update /* schema */job_blocker b set counted = false
    from edge
    where b.blocker_lane = edge.blocker_lane and b.blocker_id = edge.blocker_id
        and b.lane = edge.lane and b.sequence_id = edge.sequence_id and b.position = edge.position and b.counted and not edge.counted
)
insert into /* schema */job_blocker (blocker_lane, blocker_id, lane, sequence_id, position, ordinal, counted)
select blocker_lane, blocker_id, lane, sequence_id, position, ordinal, counted
from edge
where not exists (
    select from /* schema */job_blocker b
    where b.blocker_lane = edge.blocker_lane and b.blocker_id = edge.blocker_id
        and b.lane = edge.lane and b.sequence_id = edge.sequence_id and b.position = edge.position
)
order by blocker_lane, blocker_id, lane, sequence_id
