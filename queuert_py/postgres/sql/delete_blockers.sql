-- The edges of first jobs that wait and are replaced.
delete from /* schema */job_blocker b
using jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
where b.lane = r.lane and b.sequence_id = r.sequence_id and b.position = 0
