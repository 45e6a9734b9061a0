-- Failed sequences, those that failed first first. Null means any.
select f.lane, f.sequence_id::text
from /* schema */finished_job f
where f.outcome = 'failed' and f.lane = any(%(lanes)s::smallint[])
    and (%(type)s::text is null or f.sequence_type = %(type)s) and (%(job_type)s::text is null or f.type = %(job_type)s)
    and (%(reason)s::text is null or f.reason = %(reason)s)
    and f.finished_at >= coalesce(%(after)s::timestamptz, '-infinity') and f.finished_at < coalesce(%(before)s::timestamptz, 'infinity')
order by f.finished_at, f.sequence_id
limit %(limit)s::bigint
