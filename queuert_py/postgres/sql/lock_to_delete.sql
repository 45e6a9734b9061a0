-- As lock_live, also against those who are about to wait for these: nobody adds an edge to them until this transaction ends.
select l.lane, l.sequence_id::text, l.leased_by is not null
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
order by l.lane, l.sequence_id
for update of l
