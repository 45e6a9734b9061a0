-- Failed sequences by type, with the time of the latest: the partial index holds nothing else. Null means any.
select f.sequence_type, count(*)::int, max(f.finished_at)
from /* schema */finished_job f
where f.outcome = 'failed'
    and (%(type)s::text is null or f.sequence_type = %(type)s) and (%(job_type)s::text is null or f.type = %(job_type)s)
    and (%(reason)s::text is null or f.reason = %(reason)s)
    and f.finished_at >= coalesce(%(after)s::timestamptz, '-infinity') and f.finished_at < coalesce(%(before)s::timestamptz, 'infinity')
group by f.sequence_type
order by f.sequence_type
