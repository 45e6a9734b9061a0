-- Has any of these failed sequences waited for others? Asked before their rows are locked: the lock of the edges comes first.
select exists (
    select from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
    join /* schema */finished_job f on f.lane = r.lane and f.sequence_id = r.sequence_id
    where f.outcome = 'failed' and f.blocker_count > 0
)
