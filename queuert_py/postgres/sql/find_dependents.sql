-- The unfinished jobs that wait for these, or have them as blockers that are done.
select distinct b.blocker_id::text, b.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */job_blocker b on b.blocker_lane = r.lane and b.blocker_id = r.sequence_id
join /* schema */live_job l on l.lane = b.lane and l.sequence_id = b.sequence_id and l.position = b.position
