-- How far running jobs are, of those that somebody watches.
select clock_timestamp(), l.sequence_id, l.position, l.type, l.queue, coalesce(l.tags, '{}'), l.correlation_id, l.job_id, l.attempt,
    l.leased_by, l.progress
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
where l.progress is not null and (%(type)s::text is null or l.type = %(type)s) and (%(queue)s::text is null or l.queue = %(queue)s)
    and (%(tag)s::text is null or l.tags @> array[%(tag)s]) and (%(correlation_id)s::text is null or l.correlation_id = %(correlation_id)s)
order by l.sequence_id
