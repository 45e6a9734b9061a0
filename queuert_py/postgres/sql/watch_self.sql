-- A handler makes its own sequence a blocker, in its own transaction, which holds the row.
update /* schema */live_job l set watched = true
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
