select attempt, outcome, error, started_at, finished_at, worker, position, type
from /* schema */attempt_log
where lane = %(lane)s::smallint and sequence_id = %(sequence_id)s::uuid
order by position, finished_at, epoch
