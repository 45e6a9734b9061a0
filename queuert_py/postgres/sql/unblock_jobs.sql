-- After the blockers' rows are gone, in the next statement: dependents have less to wait for, or nothing more, by their policy. An edge
-- counts once (`counted`), however often a batch is written again. Under `hold` the edge to a failed blocker stays open.
-- Dependents that wait for each other are locked as those are who end them, blockers first: by how many stand before each (`step`).
-- What is known of one dependent is brought together by sorting: a join of CTEs would be a nested loop, and there may be thousands.
-- `offset 0`: the edges of each are looked up, whatever else the planner thinks of.
with recursive edge as (
    select b.*, f.outcome = 'completed' as completed, case when f.outcome <> 'completed' then jsonb_build_object('type', 'BlockerFailed', 'traceback', '',
        'message', 'blocker ' || b.blocker_id || ' (' || f.sequence_type || '): ' || f.outcome, 'attrs', jsonb_build_object('id', b.blocker_id,
        'type', f.sequence_type, 'outcome', f.outcome, 'error', f.last_error - array['traceback', 'attrs'])) end as doom
    from jsonb_to_recordset(%(rows)s::jsonb) as done (lane smallint, sequence_id uuid)
    cross join lateral (
        select f.outcome, f.sequence_type, f.last_error from /* schema */finished_job f
        where f.lane = done.lane and f.sequence_id = done.sequence_id order by f.position desc limit 1
    ) f
    cross join lateral (
        select * from /* schema */job_blocker b
        where b.blocker_lane = done.lane and b.blocker_id = done.sequence_id and not b.counted offset 0
    ) b
    where f.outcome <> 'continued' and not exists (select from /* schema */live_job l where l.lane = done.lane and l.sequence_id = done.sequence_id)
), found as (
    select lane, sequence_id, position, bool_or(completed) as completed, (array_agg(doom order by blocker_id) filter (where not completed))[1] as doom, 0 as step
    from edge group by lane, sequence_id, position
), placed as (
    select * from found
    union
    select b.lane, b.sequence_id, b.position, null, null, placed.step + 1
    from placed cross join lateral (
        select * from /* schema */job_blocker b
        where b.blocker_lane = placed.lane and b.blocker_id = placed.sequence_id and not b.counted offset 0
    ) b
    where b.sequence_id = any(array(select sequence_id from found)) and placed.step < 100
), waiting as materialized (
    select l.lane, l.sequence_id, l.position, l.on_blocker_failure as policy, d.doom
    from (
        select lane, sequence_id, position, bool_or(completed) as completed, (array_agg(doom) filter (where doom is not null))[1] as doom, max(step) as step
        from placed group by lane, sequence_id, position
    ) d join /* schema */live_job l on l.lane = d.lane and l.sequence_id = d.sequence_id and l.position = d.position
    where l.open_blockers > 0 and (d.completed or (d.doom is not null and l.on_blocker_failure is not null))
    order by d.step, l.lane, l.sequence_id
    for no key update of l
), told as (
    update /* schema */job_blocker b set counted = true
    from (
        select e.*, bool_or(waits) over job as kept, max(policy) over job as how
        from (
            select lane, sequence_id, position, blocker_lane, blocker_id, completed, false as waits, null as policy from edge
            union all select lane, sequence_id, position, null, null, null, true, policy from waiting
        ) e window job as (partition by lane, sequence_id, position)
    ) e
    where e.kept and (e.completed or e.how = 'ignore') and b.blocker_lane = e.blocker_lane and b.blocker_id = e.blocker_id
        and b.lane = e.lane and b.sequence_id = e.sequence_id and b.position = e.position returning b.lane, b.sequence_id
)
update /* schema */live_job l
set run_at = greatest(l.run_at, clock_timestamp()),
    open_blockers = case when w.policy = 'fail' and w.doom is not null then 0 else l.open_blockers - w.ended end,
    doom = case when w.policy = 'fail' then w.doom end
from (
    select lane, sequence_id, max(policy) as policy, (array_agg(doom) filter (where doom is not null))[1] as doom, sum(ended)::int as ended
    from (select lane, sequence_id, policy, doom, 0 as ended from waiting union all select lane, sequence_id, null, null, 1 from told) each
    group by 1, 2
) w
where l.lane = w.lane and l.sequence_id = w.sequence_id
returning l.lane, l.queue, l.priority, l.type, l.open_blockers = 0
