-- One at a time: new edges of sequences that exist already. Two that each look for a cycle at once would both find none.
select pg_advisory_xact_lock(%(lock)s) is null
