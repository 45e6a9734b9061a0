select sequence_id, type, status, reason, key, correlation_id, coalesce(tags, '{}'), steps, current_type, attempt, input, output, last_error, created_at,
    finished_at
from /* schema */sequence
where lane = %(lane)s::smallint and sequence_id = %(sequence_id)s::uuid
