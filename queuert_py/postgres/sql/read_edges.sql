-- What failed jobs had still been waiting for, and their policy.
select r.sequence_id::text, b.blocker_id::text, f.on_blocker_failure
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, position integer)
join /* schema */finished_job f on f.lane = r.lane and f.sequence_id = r.sequence_id and f.position = r.position
join /* schema */job_blocker b on b.lane = r.lane and b.sequence_id = r.sequence_id and b.position = r.position and not b.counted
order by b.blocker_lane, b.blocker_id
