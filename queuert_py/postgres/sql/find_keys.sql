-- The unfinished sequences that hold these keys.
select r.ordinal, l.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (ordinal integer, lane smallint, type text, key text)
join /* schema */live_job l on l.lane = r.lane and l.sequence_type = r.type and l.key = r.key
