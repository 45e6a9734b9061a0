select sequence_id, type, status, reason, key, correlation_id, coalesce(tags, '{}'), steps, current_type, attempt, input, output,
    last_error, created_at, finished_at, root_id, queue, priority, run_at, started_at, worker, progress, open_blockers
from /* schema */sequence
where lane = %(lane)s::smallint and sequence_id = %(sequence_id)s::uuid
