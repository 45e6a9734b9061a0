-- Newest first, by id: it never changes, so pages that follow one another miss none and show none twice. Null means any. Planned anew
-- each time (unprepared), so that only filters that are given count: a page is found by an index, then read.
-- by_time: the window of time is far back; its own index finds it, not a walk along the ids from the newest on.
with page as materialized (
    select place.lane, found.id
    from unnest(%(lanes)s::smallint[]) place (lane)
    cross join lateral (
        (
            select l.sequence_id as id
            from /* schema */live_job l
            where l.lane = place.lane and %(live)s::boolean and (%(after)s::uuid is null or l.sequence_id < %(after)s)
                and (%(live_status)s::text is null or case %(live_status)s
                    when 'running' then l.leased_by is not null
                    when 'blocked' then l.leased_by is null and l.open_blockers > 0
                    when 'scheduled' then l.leased_by is null and l.open_blockers = 0 and l.run_at > (select clock_timestamp())
                    else l.leased_by is null and l.open_blockers = 0 and l.run_at <= (select clock_timestamp()) end)
                and (%(type)s::text is null or l.sequence_type = %(type)s) and (%(queue)s::text is null or l.queue = %(queue)s)
                and (%(key)s::text is null or l.key = %(key)s) and (%(tag)s::text is null or l.tags @> array[%(tag)s])
                and (%(correlation_id)s::text is null or l.correlation_id = %(correlation_id)s)
                and (%(root_id)s::uuid is null or l.sequence_id = %(root_id)s or l.root_id = %(root_id)s and l.root_id <> l.sequence_id)
                and l.sequence_created_at >= coalesce(%(since)s::timestamptz, '-infinity')
                and l.sequence_created_at < coalesce(%(until)s::timestamptz, 'infinity')
            order by 1 desc limit %(limit)s
        ) union all (
            select f.sequence_id from /* schema */finished_job f
            where f.lane = place.lane and %(finished)s::boolean and (%(after)s is null or f.sequence_id < %(after)s)
                and f.outcome <> 'continued' and (%(outcome)s::text is null or f.outcome = %(outcome)s)
                and (%(reason)s::text is null or f.reason = %(reason)s)
                and (%(type)s is null or f.sequence_type = %(type)s) and (%(queue)s is null or f.queue = %(queue)s)
                and (%(key)s is null or f.key = %(key)s) and (%(tag)s is null or f.tags @> array[%(tag)s])
                and (%(correlation_id)s is null or f.correlation_id = %(correlation_id)s)
                and (%(root_id)s is null or f.sequence_id = %(root_id)s or f.root_id = %(root_id)s and f.root_id <> f.sequence_id)
                and (%(since)s is null or f.sequence_created_at >= %(since)s) and (%(until)s is null or f.sequence_created_at < %(until)s)
                and (%(ended_since)s::timestamptz is null or f.finished_at >= %(ended_since)s)
                and (%(ended_until)s::timestamptz is null or f.finished_at < %(ended_until)s)
            order by case when %(by_time)s::boolean then f.attempt * 0 end, f.sequence_id desc limit %(limit)s
        )
    ) found order by found.id desc limit %(limit)s
)
select s.sequence_id, s.type, s.status, s.reason, s.key, s.correlation_id, coalesce(s.tags, '{}'), s.steps, s.current_type, s.attempt,
    s.input, s.output, s.last_error, s.created_at, s.finished_at, s.root_id, s.queue, s.priority, s.run_at, s.started_at, s.worker,
    s.progress, s.open_blockers
from page
cross join lateral (select * from /* schema */sequence s where s.lane = page.lane and s.sequence_id = page.id limit 1) s
order by s.sequence_id desc
