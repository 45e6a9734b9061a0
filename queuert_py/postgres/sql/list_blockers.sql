-- What the jobs of a sequence wait, or waited, for. Settled: told of by the blocker's end, or the job is beyond waiting.
select b.blocker_id, b.position,
    b.counted or not exists (
        select from /* schema */live_job l
        where l.lane = b.lane and l.sequence_id = b.sequence_id and l.position = b.position and l.open_blockers > 0
    ),
    s.type, s.status, s.reason, s.current_type, s.last_error, s.created_at, s.finished_at
from (
    select e.lane, e.sequence_id, e.position, e.blocker_lane, e.blocker_id, min(e.ordinal) as ordinal, bool_and(e.counted) as counted
    from /* schema */job_blocker e
    where e.lane = %(lane)s::smallint and e.sequence_id = %(sequence_id)s::uuid
        and (%(after)s::uuid is null or (e.position, e.blocker_id) > (%(position)s::integer, %(after)s))
    group by 1, 2, 3, 4, 5
    order by e.position, e.blocker_id
    limit %(limit)s
) b
left join lateral (
    select * from /* schema */sequence s where s.lane = b.blocker_lane and s.sequence_id = b.blocker_id limit 1
) s on true
order by b.position, b.blocker_id
