-- As list_sequences, for jobs of every position.
with page as materialized (
    select place.lane, found.id, found.position
    from unnest(%(lanes)s::smallint[]) place (lane)
    cross join lateral (
        (
            select l.sequence_id as id, l.position
            from /* schema */live_job l
            where l.lane = place.lane and %(live)s::boolean
                and (%(after)s::uuid is null or (l.sequence_id, l.position) < (%(after)s, %(position)s::integer))
                and (%(live_status)s::text is null or case %(live_status)s
                    when 'running' then l.leased_by is not null
                    when 'blocked' then l.leased_by is null and l.open_blockers > 0
                    when 'scheduled' then l.leased_by is null and l.open_blockers = 0 and l.run_at > (select clock_timestamp())
                    else l.leased_by is null and l.open_blockers = 0 and l.run_at <= (select clock_timestamp()) end)
                and (%(type)s::text is null or l.type = %(type)s) and (%(queue)s::text is null or l.queue = %(queue)s)
                and (%(worker)s::text is null or l.leased_by = %(worker)s) and (%(tag)s::text is null or l.tags @> array[%(tag)s])
                and (%(correlation_id)s::text is null or l.correlation_id = %(correlation_id)s)
                and (%(root_id)s::uuid is null or l.sequence_id = %(root_id)s or l.root_id = %(root_id)s and l.root_id <> l.sequence_id)
                and l.sequence_created_at >= coalesce(%(since)s::timestamptz, '-infinity')
                and l.sequence_created_at < coalesce(%(until)s::timestamptz, 'infinity')
            order by 1 desc, 2 desc limit %(limit)s
        ) union all (
            select f.sequence_id, f.position from /* schema */finished_job f
            where f.lane = place.lane and %(finished)s::boolean and (%(outcome)s::text is null or f.outcome = %(outcome)s)
                and (%(reason)s::text is null or f.reason = %(reason)s)
                and (%(after)s is null or (f.sequence_id, f.position) < (%(after)s, %(position)s))
                and (%(type)s is null or f.type = %(type)s) and (%(queue)s is null or f.queue = %(queue)s)
                and (%(worker)s is null or f.finished_by = %(worker)s) and (%(tag)s is null or f.tags @> array[%(tag)s])
                and (%(correlation_id)s is null or f.correlation_id = %(correlation_id)s)
                and (%(root_id)s is null or f.sequence_id = %(root_id)s or f.root_id = %(root_id)s and f.root_id <> f.sequence_id)
                and (%(since)s is null or f.sequence_created_at >= %(since)s) and (%(until)s is null or f.sequence_created_at < %(until)s)
                and (%(ended_since)s::timestamptz is null or f.finished_at >= %(ended_since)s)
                and (%(ended_until)s::timestamptz is null or f.finished_at < %(ended_until)s)
            order by case when %(by_time)s::boolean then f.attempt * 0 end, f.sequence_id desc, f.position desc limit %(limit)s
        )
    ) found order by 2 desc, 3 desc limit %(limit)s
)
select j.sequence_id, j.position, j.job_id, j.type, j.status, j.reason, j.queue, j.priority, j.attempt, j.crash_count, j.input, j.output,
    j.last_error, j.run_at, j.created_at, j.started_at, j.finished_at, j.worker, j.progress, j.root_id, j.origin_id, j.open_blockers,
    j.correlation_id, coalesce(j.tags, '{}')
from page cross join lateral (
    select * from /* schema */job j where j.lane = page.lane and j.sequence_id = page.id and j.position = page.position limit 1
) j
order by j.sequence_id desc, j.position desc
