-- A sequence that is about to end in this transaction lets its own key go, so that its handler may start the next one with it: not where
-- the start counts finished ones as well, as this one will be, if it was started within the window.
update /* schema */live_job l set key = null
from /* schema */live_job held,
    jsonb_to_recordset(%(rows)s::jsonb) as r (type text, key text, lasting boolean, "window" interval)
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
    and l.sequence_type = r.type and l.key = r.key
    and (not r.lasting or l.sequence_created_at < clock_timestamp() - r."window")
    and held.lane = l.lane and held.sequence_id = l.sequence_id
returning held.sequence_type, held.key
