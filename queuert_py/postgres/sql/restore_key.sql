-- In the transaction that let it go: what was to take the key over was refused, and is undone.
update /* schema */live_job l set key = %(key)s
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
