-- Would this sequence wait for itself? From its new blockers along what their current jobs wait for. Under the lock of lock_edges.
with recursive reached as (
    select r.lane, r.sequence_id
    from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
    union
    select b.blocker_lane, b.blocker_id
    from reached
    join /* schema */live_job l on l.lane = reached.lane and l.sequence_id = reached.sequence_id and l.open_blockers > 0
    join /* schema */job_blocker b on b.lane = l.lane and b.sequence_id = l.sequence_id and b.position = l.position and not b.counted
)
select true from reached where lane = %(lane)s::smallint and sequence_id = %(sequence_id)s::uuid
