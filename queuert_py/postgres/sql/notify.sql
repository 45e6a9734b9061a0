select pg_notify(%(channel)s, hint) from unnest(%(hints)s::text[]) as hint
