-- Unfinished jobs by queue, type and status, with the age in seconds of the oldest that could run.
select queue, type, status, count(*)::int,
    max(case when status = 'pending' then extract(epoch from clock_timestamp() - run_at) end)::float8
from /* schema */job
where finished_at is null
group by queue, type, status
order by queue, type, status
