-- What first jobs that this transaction has inserted (or replaced) wait for, now that their blockers are held.
update /* schema */live_job l
set open_blockers = r.open_blockers, doom = r.doom
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, open_blockers integer, doom jsonb)
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.position = 0
