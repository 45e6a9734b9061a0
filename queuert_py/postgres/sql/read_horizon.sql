-- The time, and then the transactions that are writing history: each holds its lock from before its finished_at until its commit is
-- visible, so whatever has an earlier finished_at is visible by now, or among theirs.
with begun as materialized (select clock_timestamp() as at)
select begun.at, array(
    select k.virtualtransaction
    from pg_locks k
    where k.locktype = 'relation' and k.mode = 'RowExclusiveLock' and k.granted
        and k.database = (select d.oid from pg_database d where d.datname = current_database())
        and k.relation in ('/* schema */finished_job'::regclass, '/* schema */attempt_log'::regclass)
)
from begun
