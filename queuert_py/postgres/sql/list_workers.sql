select w.id, w.host, w.pid, w.version, w.queues, w.types, w.concurrency, w.started_at,
    (select count(*)::int from /* schema */live_job l where l.lane = any(%(lanes)s::smallint[]) and l.leased_by = w.id)
from /* schema */worker w
order by w.started_at
