-- The jobs of one sequence, in order.
select sequence_id, position, job_id, type, status, reason, queue, priority, attempt, crash_count, input, output, last_error, run_at,
    created_at, started_at, finished_at, worker, progress, root_id, origin_id, open_blockers, correlation_id, coalesce(tags, '{}')
from /* schema */job
where lane = %(lane)s::smallint and sequence_id = %(sequence_id)s::uuid
order by position
