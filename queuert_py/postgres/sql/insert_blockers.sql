-- The edges of jobs to what they wait for. One that is there already stays as it is.
insert into /* schema */job_blocker (blocker_lane, blocker_id, lane, sequence_id, position, ordinal, counted)
select r.blocker_lane, r.blocker_id, r.lane, r.sequence_id, r.position, r.ordinal, r.counted
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    blocker_lane smallint, blocker_id uuid, lane smallint, sequence_id uuid, position integer, ordinal integer, counted boolean
)
where not exists (
    select from /* schema */job_blocker b
    where b.blocker_lane = r.blocker_lane and b.blocker_id = r.blocker_id
        and b.lane = r.lane and b.sequence_id = r.sequence_id and b.position = r.position
)
order by r.blocker_lane, r.blocker_id, r.lane, r.sequence_id
