-- Sequences that exist already under these ids, finished or (past their first job) not, and whether type and input are the same.
select r.sequence_id::text, f.sequence_type = r.type and r.input in (f.input, 'null')
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, type text, input jsonb)
join /* schema */finished_job f on f.lane = r.lane and f.sequence_id = r.sequence_id and f.position = 0
union all
select r.sequence_id::text, l.sequence_type = r.type and r.input in (l.input, 'null')
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, type text, input jsonb)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id and l.position = 0
