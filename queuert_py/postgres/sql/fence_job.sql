-- The first statement of every transaction of an attempt: it owns the row from here to the end, or learns that it lost it.
select l.watched, pg_current_xact_id()::text
from /* schema */live_job l
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
for no key update
