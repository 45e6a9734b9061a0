-- Edges that count no more.
update /* schema */job_blocker b set counted = true
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    blocker_lane smallint, blocker_id uuid, lane smallint, sequence_id uuid, position integer, counted boolean
)
where r.counted and b.blocker_lane = r.blocker_lane and b.blocker_id = r.blocker_id
    and b.lane = r.lane and b.sequence_id = r.sequence_id and b.position = r.position
