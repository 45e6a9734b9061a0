-- Somebody waits for these. Sticky; skips rows that a handler's transaction holds: the reader looks again.
with open as materialized (
    select l.lane, l.sequence_id
    from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
    join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
    where not l.watched
    order by l.lane, l.sequence_id
    for no key update of l skip locked
)
update /* schema */live_job l set watched = true
from open
where l.lane = open.lane and l.sequence_id = open.sequence_id
