-- Workers whose presence lock is free, and how many are there in all. Shared, so that probers do not see each other.
select w.id, pg_try_advisory_xact_lock_shared(%(class)s::int, w.presence)
from /* schema */worker w
