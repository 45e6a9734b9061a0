-- What sequences wait for, or how they ended: the facts. Nothing comes back for one that does not exist.
select s.sequence_id, s.type, s.current_type, s.status, s.reason, s.queue, s.attempt, s.run_at, s.started_at, s.finished_at, s.worker,
    s.last_error, s.open_blockers, s.progress, coalesce(q.paused, false), l.memo ->> 'waiting', l.memo ->> 'sleeping',
    l.doom ->> 'message', coalesce(l.leased_until < (select clock_timestamp()), false), s.expires_at, s.deadline_at,
    ends.at as limit_at, coalesce(ends.at <= (select clock_timestamp()), false), coalesce(l.begun, false), coalesce(l.crash_count, 0)
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
cross join lateral (select * from /* schema */sequence s where s.lane = r.lane and s.sequence_id = r.sequence_id limit 1) s
left join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
left join /* schema */queue q on q.name = s.queue
cross join lateral (select least(case when l.position = 0 and l.attempt = 0 then l.expires_at end, l.deadline_at) as at) ends
