-- After the blockers' rows are gone, in the next statement: dependents have less to wait for, or nothing more, by their policy. An edge
-- counts once (`counted`), however often a batch is written again. Under `hold` the edge to a failed blocker stays open.
with edge as (
    select b.*, f.outcome = 'completed' as completed, 'blocker ' || b.blocker_id || ' (' || f.sequence_type || '): ' || f.outcome as fate
    from jsonb_to_recordset(%(rows)s::jsonb) as done (lane smallint, sequence_id uuid)
    cross join lateral (
        select f.outcome, f.sequence_type
        from /* schema */finished_job f
        where f.lane = done.lane and f.sequence_id = done.sequence_id
        order by f.position desc
        limit 1
    ) f
    join /* schema */job_blocker b on b.blocker_lane = done.lane and b.blocker_id = done.sequence_id and not b.counted
    where f.outcome <> 'continued'
        and not exists (select from /* schema */live_job l where l.lane = done.lane and l.sequence_id = done.sequence_id)
), waiting as materialized (
    select l.lane, l.sequence_id, l.position, l.on_blocker_failure as policy, found.fate
    from (
        select lane, sequence_id, position, bool_or(completed) as completed, min(fate) filter (where not completed) as fate
        from edge
        group by lane, sequence_id, position
    ) found
    join /* schema */live_job l on l.lane = found.lane and l.sequence_id = found.sequence_id and l.position = found.position
    where l.open_blockers > 0 and (found.completed or l.on_blocker_failure is not null)
    order by l.lane, l.sequence_id
    for no key update of l
), told as (
    update /* schema */job_blocker b set counted = true
    from waiting w join edge on edge.lane = w.lane and edge.sequence_id = w.sequence_id and edge.position = w.position
    where (edge.completed or w.policy = 'ignore') and b.blocker_lane = edge.blocker_lane and b.blocker_id = edge.blocker_id
        and b.lane = edge.lane and b.sequence_id = edge.sequence_id and b.position = edge.position
    returning b.lane, b.sequence_id
), told_of as (
    select lane, sequence_id, count(*)::int as ended from told group by lane, sequence_id
)
update /* schema */live_job l
set run_at = greatest(l.run_at, clock_timestamp()),
    open_blockers = case when w.policy = 'fail' and w.fate is not null then 0 else l.open_blockers - coalesce(told_of.ended, 0) end,
    doom = case when w.policy = 'fail' and w.fate is not null
        then jsonb_build_object('type', 'BlockerFailed', 'message', w.fate, 'traceback', '', 'attrs', '{}'::jsonb) end
from waiting w left join told_of on told_of.lane = w.lane and told_of.sequence_id = w.sequence_id
where l.lane = w.lane and l.sequence_id = w.sequence_id
returning l.lane, l.queue, l.priority, l.type, l.open_blockers = 0
