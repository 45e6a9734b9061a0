-- Starts whose key a finished sequence holds, in the transaction that inserted them.
delete from /* schema */live_job l
using jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.position = 0
