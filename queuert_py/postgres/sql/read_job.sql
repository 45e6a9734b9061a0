-- One job by its id. That of a first job is its sequence's; the others are looked up in every lane.
select sequence_id, position, job_id, type, status, reason, queue, priority, attempt, crash_count, input, output, last_error, run_at,
    created_at, started_at, finished_at, worker, progress, root_id, origin_id, open_blockers, correlation_id, coalesce(tags, '{}')
from /* schema */job
where lane = %(lane)s::smallint and sequence_id = %(job_id)s::uuid and position = 0
    or lane = any(%(lanes)s::smallint[]) and job_id = %(job_id)s and position > 0
limit 1
