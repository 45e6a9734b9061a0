-- Unfinished sequences that a job is to wait for, held until this transaction ends: whoever finishes one must wait, and then sees the edge.
-- Only those that are marked as watched already: the finisher of any other would not look for edges.
select l.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
where l.watched
order by l.lane, l.sequence_id
for key share of l
