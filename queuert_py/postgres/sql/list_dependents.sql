-- The jobs that wait, or waited, for a sequence. Settled: told of its end, or beyond waiting.
select b.sequence_id, b.position,
    b.counted or not exists (
        select from /* schema */live_job l
        where l.lane = b.lane and l.sequence_id = b.sequence_id and l.position = b.position and l.open_blockers > 0
    ),
    s.type, s.status, s.reason, s.current_type, s.last_error, s.created_at, s.finished_at
from (
    select e.lane, e.sequence_id, e.position, bool_and(e.counted) as counted
    from /* schema */job_blocker e
    where e.blocker_lane = %(lane)s::smallint and e.blocker_id = %(sequence_id)s::uuid
        and (%(after)s::uuid is null or (e.sequence_id, e.position) > (%(after)s, %(position)s::integer))
    group by 1, 2, 3
    order by e.sequence_id, e.position
    limit %(limit)s
) b
left join lateral (
    select * from /* schema */sequence s where s.lane = b.lane and s.sequence_id = b.sequence_id limit 1
) s on true
order by b.sequence_id, b.position
