-- The edges of jobs that have another input now (first ones that wait and are replaced, failed ones that run again), but to those kept.
delete from /* schema */job_blocker b
using jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, position integer, kept uuid[])
where b.lane = r.lane and b.sequence_id = r.sequence_id and b.position = coalesce(r.position, 0)
    and b.blocker_id <> all(coalesce(r.kept, '{}'))
