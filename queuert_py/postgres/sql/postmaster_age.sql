-- Seconds since the server started, if a lease is older than that: an outage may have made it look dead. Infinity otherwise.
select case
    when exists (
        select from /* schema */live_job l where l.leased_by is not null and l.leased_at < pg_postmaster_start_time()
    ) then extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8
    else 'infinity'::float8
end
