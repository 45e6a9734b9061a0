-- An event of an unfinished sequence, if it has come: who sent it, and its payload. With the epoch, by which an attempt knows its job.
select l.epoch, l.memo -> 'events' -> %(name)s::text ->> 'by', (l.memo -> 'events' -> %(name)s::text -> 'payload')::text
from /* schema */live_job l
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid
