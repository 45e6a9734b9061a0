-- Seconds since the server started: a young one may have made every lease look dead.
select extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8
