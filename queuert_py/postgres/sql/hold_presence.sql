-- A session lock for as long as the worker's process lives: free within milliseconds of its death.
select pg_try_advisory_lock(%(class)s::int, %(presence)s::int)
