-- Failed sequences, locked already, become live again where they failed, with another input if one is given. One whose key another
-- unfinished sequence holds is left out. Sorted by key, as starts are, so that neither waits for the other in a ring.
insert into /* schema */live_job (
    lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, queue, priority, input, key, correlation_id, tags,
    trace_context, last_error, blocker_count, max_attempts, backoff, timeout, created_at, sequence_created_at, memo, attempt, watched,
    open_blockers, on_blocker_failure, doom, deadline_at
)
select f.lane, f.sequence_id, f.position, f.job_id, f.root_id, f.origin_id, f.sequence_type, f.type, f.queue, f.priority,
    coalesce(r.input, f.input), f.key, f.correlation_id, f.tags,
    f.trace_context, f.last_error, f.blocker_count, f.max_attempts, f.backoff, f.timeout, f.created_at, f.sequence_created_at,
    case
        when r.input is null then f.memo - array['deadlines', 'waiting', 'sleeping']
        when f.memo ? 'events' then jsonb_build_object('events', f.memo -> 'events')
    end, coalesce(r.attempt, 0), true,
    coalesce(r.open_blockers, 0), f.on_blocker_failure, r.doom, case when f.deadline_at > clock_timestamp() then f.deadline_at end
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    lane smallint, sequence_id uuid, input jsonb, attempt integer, open_blockers integer, doom jsonb
)
join /* schema */finished_job f on f.lane = r.lane and f.sequence_id = r.sequence_id
where f.outcome = 'failed'
order by f.lane, f.sequence_type collate "C", f.key collate "C", f.sequence_id
on conflict do nothing
returning lane, sequence_id::text, queue, priority, type
