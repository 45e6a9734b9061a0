-- What has happened, in the order of time: behind a place in that order, before `until`. Null means any. Failures are told from the log
-- (those with a reason: for good), which keeps them when they are retried. Planned anew each time.
select *
from (
    (
        select f.finished_at as at, f.sequence_id, f.position, f.outcome, f.type, f.queue, coalesce(f.tags, '{}'), f.correlation_id, f.job_id,
            f.attempt, f.finished_by as worker, f.output::text, f.output_type, f.reason, f.last_error
        from /* schema */finished_job f
        where f.finished_at >= %(at)s::timestamptz and f.finished_at < coalesce(%(until)s::timestamptz, 'infinity')
            and (f.finished_at, f.sequence_id, f.position, f.outcome) > (%(at)s, %(id)s::uuid, %(position)s::integer, %(kind)s::text)
            and f.outcome = any(%(kinds)s::text[]) and f.outcome <> 'failed'
            and (%(sequence_id)s::uuid is null or f.lane = %(lane)s::smallint and f.sequence_id = %(sequence_id)s)
            and (%(type)s::text is null or f.type = %(type)s) and (%(queue)s::text is null or f.queue = %(queue)s)
            and (%(tag)s::text is null or f.tags @> array[%(tag)s])
            and (%(correlation_id)s::text is null or f.correlation_id = %(correlation_id)s)
        order by 1, 2, 3, 4 limit %(limit)s
    ) union all (
        select a.finished_at, a.sequence_id, a.position, told.outcome, a.type, j.queue, coalesce(j.tags, '{}'), j.correlation_id, j.job_id,
            a.attempt, a.worker, null, null, a.reason, a.error
        from /* schema */attempt_log a
        cross join lateral (
            select case when a.reason is not null then 'failed' when a.outcome <> 'failed' then a.outcome end as outcome
        ) told
        left join lateral (
            select * from /* schema */job j where j.lane = a.lane and j.sequence_id = a.sequence_id and j.position = a.position limit 1
        ) j on true
        where a.finished_at >= %(at)s and a.finished_at < coalesce(%(until)s::timestamptz, 'infinity')
            and (a.finished_at, a.sequence_id, a.position, told.outcome) > (%(at)s, %(id)s, %(position)s, %(kind)s)
            and told.outcome = any(%(kinds)s)
            and (%(sequence_id)s is null or a.lane = %(lane)s and a.sequence_id = %(sequence_id)s)
            and (%(type)s is null or a.type = %(type)s) and (%(queue)s is null or j.queue = %(queue)s)
            and (%(tag)s is null or j.tags @> array[%(tag)s])
            and (%(correlation_id)s is null or j.correlation_id = %(correlation_id)s)
        order by 1, 2, 3, 4 limit %(limit)s
    )
) news
order by 1, 2, 3, 4 limit %(limit)s
