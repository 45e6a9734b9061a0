-- Jobs that ended within a span, by type and outcome, with the mean time of their last attempt in seconds.
select type, outcome, count(*)::int, avg(extract(epoch from finished_at - started_at))::float8
from /* schema */finished_job
where finished_at > clock_timestamp() - %(span)s
group by type, outcome
order by type, outcome
