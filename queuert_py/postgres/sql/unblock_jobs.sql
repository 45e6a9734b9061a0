-- After the blockers' rows are gone, in the next statement: one less to wait for, for each distinct blocker that completed.
-- Only those that this very transaction completed (xmin): a batch that is written again after a lost answer counts once.
with edge as (
    select b.lane, b.sequence_id, b.position, count(distinct (b.blocker_lane, b.blocker_id))::int as ended
    from jsonb_to_recordset(%(rows)s::jsonb) as done (lane smallint, sequence_id uuid)
    join /* schema */finished_job f on f.lane = done.lane and f.sequence_id = done.sequence_id and f.outcome = 'completed'
        and f.xmin = pg_current_xact_id()::xid
    join /* schema */job_blocker b on b.blocker_lane = done.lane and b.blocker_id = done.sequence_id
    group by b.lane, b.sequence_id, b.position
), waiting as materialized (
    select l.lane, l.sequence_id, edge.ended
    from edge join /* schema */live_job l on l.lane = edge.lane and l.sequence_id = edge.sequence_id
    where l.position = edge.position and l.open_blockers > 0
    order by l.lane, l.sequence_id
    for no key update of l
)
update /* schema */live_job l
set open_blockers = l.open_blockers - waiting.ended, run_at = greatest(l.run_at, clock_timestamp())
from waiting
where l.lane = waiting.lane and l.sequence_id = waiting.sequence_id
returning l.lane, l.queue, l.priority, l.type, l.open_blockers = 0
