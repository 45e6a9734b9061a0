-- A sequence that is about to end in this transaction lets its own key go, so that its handler may start the next one with it.
update /* schema */live_job l set key = null
from /* schema */live_job held
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
    and l.sequence_type = %(type)s and l.key = any(%(keys)s::text[])
    and held.lane = l.lane and held.sequence_id = l.sequence_id
returning held.key
