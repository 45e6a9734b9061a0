-- Start any number of sequences; the first of a key wins. Sorted by key, so that two batches never wait for each other in a ring.
insert into /* schema */live_job (
    lane, sequence_id, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, key, correlation_id, tags,
    max_attempts, backoff, timeout, expires_at, deadline_at, watched, open_blockers, blocker_count, on_blocker_failure, doom
)
select r.lane, r.sequence_id, r.sequence_id, coalesce(r.root_id, r.sequence_id), r.origin_id, r.type, r.type, r.queue, r.priority,
    greatest(clock_timestamp(), r.at, clock_timestamp() + r.delay), r.input, r.key, r.correlation_id, r.tags,
    r.max_attempts, r.backoff, r.timeout, coalesce(r.expires_at, clock_timestamp() + r.expires), coalesce(r.deadline_at, clock_timestamp() + r.deadline),
    coalesce(r.watched, false), coalesce(r.open_blockers, 0), coalesce(r.blocker_count, 0), r.on_blocker_failure, r.doom
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    lane smallint, sequence_id uuid, root_id uuid, origin_id uuid, type text, queue text, priority smallint, at timestamptz, delay interval,
    input jsonb, key text, correlation_id text, tags text[], max_attempts integer, backoff jsonb, timeout interval, expires_at timestamptz,
    expires interval, deadline_at timestamptz, deadline interval, watched boolean, open_blockers integer, blocker_count integer,
    on_blocker_failure text, doom jsonb
)
order by r.lane, r.type collate "C", r.key collate "C", r.sequence_id
on conflict do nothing
returning sequence_id::text
