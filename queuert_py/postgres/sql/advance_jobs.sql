-- Second half of advancing: the live row becomes the next job, in place. Only rows whose old job finish_steps has written.
-- Never delete and insert: whoever waited for the old row would not see the new one.
update /* schema */live_job l
set job_id = step.job_id, position = l.position + 1, origin_id = l.job_id, type = step.type, queue = coalesce(step.queue, l.queue),
    priority = coalesce(step.priority, l.priority), input = step.input,
    run_at = greatest(clock_timestamp(), step.at, clock_timestamp() + step.delay),
    attempt = keep.it::int, crash_count = 0, epoch = l.epoch + 1, claim_token = null, begun = keep.it,
    leased_by = case when keep.it then l.leased_by end, leased_at = clock_timestamp(),
    leased_until = case when keep.it then clock_timestamp() + %(lease)s end,
    progress = null, memo = case when l.memo ? 'events' then jsonb_build_object('events', l.memo -> 'events') end,
    last_error = null, max_attempts = step.max_attempts, backoff = null, timeout = step.timeout,
    created_at = clock_timestamp(), expires_at = null, blocker_count = coalesce(step.blocker_count, 0),
    open_blockers = coalesce(step.open_blockers, 0), on_blocker_failure = step.on_blocker_failure, doom = step.doom,
    deadline_at = case when step.compensates then null else l.deadline_at end
from jsonb_to_recordset(%(rows)s::jsonb) as step (
    lane smallint, sequence_id uuid, epoch bigint, job_id uuid, type text, queue text, priority smallint, input jsonb,
    at timestamptz, delay interval, max_attempts integer, timeout interval, handoff boolean,
    open_blockers integer, blocker_count integer, on_blocker_failure text, doom jsonb, compensates boolean
)
cross join lateral (
    select step.handoff and not exists (select from /* schema */queue q where q.name = step.queue and q.paused) as it
) keep
where l.lane = step.lane and l.sequence_id = step.sequence_id and l.epoch = step.epoch
    and exists (
        select from /* schema */finished_job f
        where f.lane = l.lane and f.sequence_id = l.sequence_id and f.position = l.position and f.epoch = step.epoch
    )
returning l.sequence_id::text, l.begun, l.watched, l.queue, l.priority, extract(epoch from l.run_at - clock_timestamp())::float8
