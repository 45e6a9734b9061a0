-- When the oldest of the transactions began that are writing history now; null: none is. What they have written is no older than that. Of
-- another role's transaction the server may not say it: then a minute ago.
select min(coalesce(a.xact_start, (select clock_timestamp()) - interval '1 minute'))
from pg_locks k
left join pg_stat_activity a on a.pid = k.pid
where k.locktype = 'relation' and k.mode = 'RowExclusiveLock' and k.granted
    and k.database = (select d.oid from pg_database d where d.datname = current_database())
    and k.relation in ('/* schema */finished_job'::regclass, '/* schema */attempt_log'::regclass)
