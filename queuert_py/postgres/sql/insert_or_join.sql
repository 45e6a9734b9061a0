-- As insert_sequences, for a single keyed start whose winner ended while it was looked for: waits for the key and cannot lose again.
insert into /* schema */live_job as l (
    lane, sequence_id, job_id, root_id, origin_id, sequence_type, type, queue, priority, run_at, input, key, correlation_id, tags,
    max_attempts, timeout, expires_at
)
select r.lane, r.sequence_id, r.sequence_id, coalesce(r.root_id, r.sequence_id), r.origin_id, r.type, r.type, r.queue, r.priority,
    greatest(clock_timestamp(), r.at, clock_timestamp() + r.delay), r.input, r.key, r.correlation_id, r.tags,
    r.max_attempts, r.timeout, coalesce(r.expires_at, clock_timestamp() + r.expires)
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    lane smallint, sequence_id uuid, root_id uuid, origin_id uuid, type text, queue text, priority smallint, at timestamptz, delay interval,
    input jsonb, key text, correlation_id text, tags text[], max_attempts integer, timeout interval, expires_at timestamptz, expires interval
)
order by r.lane, r.type, r.key, r.sequence_id
on conflict (lane, sequence_type, key) where key is not null do update set key = excluded.key
returning l.sequence_id::text, l.key
