-- Of those that lock_blockers did not give: is there a live row, and how did the last job end? That row is held: a retry takes it first.
select r.sequence_id::text, l.sequence_id is not null, f.outcome, f.sequence_type, (f.last_error - array['traceback', 'attrs'])::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
left join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
left join lateral (
    select f.outcome, f.sequence_type, f.last_error
    from /* schema */finished_job f
    where f.lane = r.lane and f.sequence_id = r.sequence_id
    order by f.position desc
    limit 1
    for key share
) f on true
order by r.lane, r.sequence_id
