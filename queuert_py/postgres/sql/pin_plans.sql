-- For a transaction of the engine's own on a pool connection: plans through indexes, as on its other connections.
select set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
    set_config('jit', 'off', true)
