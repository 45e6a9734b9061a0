-- All that these have waited for, at any of their steps, and what that has waited for.
with recursive up as (
    select r.lane, r.sequence_id
    from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
    union
    select b.blocker_lane, b.blocker_id
    from up
    join /* schema */job_blocker b on b.lane = up.lane and b.sequence_id = up.sequence_id
)
select lane, sequence_id::text from up
