-- Failed sequences by type, with the time of the latest: the partial index holds nothing else.
select sequence_type, count(*)::int, max(finished_at)
from /* schema */finished_job
where outcome = 'failed'
group by sequence_type
order by sequence_type
