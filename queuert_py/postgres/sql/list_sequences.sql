-- Newest first. Null means any.
select sequence_id, type, status, reason, key, correlation_id, coalesce(tags, '{}'), steps, current_type, attempt, input, output, last_error, created_at,
    finished_at
from /* schema */sequence
where (%(status)s::text is null or status = %(status)s) and (%(type)s::text is null or type = %(type)s)
    and (%(key)s::text is null or key = %(key)s)
order by created_at desc, sequence_id desc
limit %(limit)s
