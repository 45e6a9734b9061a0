-- What the current jobs of sequences still wait for.
select b.sequence_id::text, b.blocker_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id and l.open_blockers > 0
join /* schema */job_blocker b on b.lane = l.lane and b.sequence_id = l.sequence_id and b.position = l.position and not b.counted
group by 1, 2
order by 1, 2
limit %(limit)s
