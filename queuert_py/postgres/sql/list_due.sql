-- In how many seconds these sequences' jobs are due (0 or less: now): those that nobody has and nothing blocks.
select extract(epoch from l.run_at - clock_timestamp())::float8
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
where l.leased_by is null and l.open_blockers = 0
