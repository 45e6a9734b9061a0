-- A job that runs alone, because workers died with it: said before its first line, so that the next death counts.
update /* schema */live_job l set begun = true, leased_until = clock_timestamp() + %(lease)s
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
returning l.sequence_id::text
