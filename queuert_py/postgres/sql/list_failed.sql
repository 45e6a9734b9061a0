-- As list_sequences, for the failed ones: latest first, by their own index.
select s.sequence_id, s.type, s.status, s.reason, s.key, s.correlation_id, coalesce(s.tags, '{}'), s.steps, s.current_type, s.attempt,
    s.input, s.output, s.last_error, s.created_at, s.finished_at
from (
    select f.lane, f.sequence_id, f.finished_at
    from /* schema */finished_job f
    where f.outcome = 'failed' and (%(type)s::text is null or f.sequence_type = %(type)s) and (%(key)s::text is null or f.key = %(key)s)
    order by f.finished_at desc, f.sequence_id desc
    limit %(limit)s
) f
join /* schema */sequence s on s.lane = f.lane and s.sequence_id = f.sequence_id
order by f.finished_at desc, f.sequence_id desc
