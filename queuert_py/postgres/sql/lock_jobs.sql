-- Wait for whoever holds these rows: after an unanswered COMMIT only a locking read is conclusive.
select l.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as held (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = held.lane and l.sequence_id = held.sequence_id
order by l.lane, l.sequence_id
for no key update of l
