-- As lock_jobs, but for what somebody holds: whoever has the lock of lock_edges waits for no row of these, whose holder may want that lock.
select l.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as wanted (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = wanted.lane and l.sequence_id = wanted.sequence_id
order by l.lane, l.sequence_id
for no key update of l skip locked
