insert into /* schema */worker as w (id, presence, name, host, pid, version, queues, types, concurrency, running)
values (
    %(id)s, %(presence)s, %(name)s, %(host)s, %(pid)s, %(version)s, %(queues)s::text[], %(types)s::text[], %(concurrency)s, %(running)s
)
on conflict (id) do update set presence = excluded.presence, running = excluded.running, seen_at = clock_timestamp()
