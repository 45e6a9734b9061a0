-- The server ends this transaction when its client has been silent for a lease: a stopped process must not keep its row locked.
select set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true)
