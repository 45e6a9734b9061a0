-- How long this transaction waits for a row that somebody else's holds.
select set_config('lock_timeout', %(milliseconds)s, true)
