-- Of those that lock_blockers did not give: is there a live row, how did the last job end, and has one ended at all? The last one's row is
-- held, so that no retry takes it; one that somebody else holds (a retry, a deletion) is passed over, not waited for.
select r.sequence_id::text, l.sequence_id is not null, f.outcome, f.sequence_type, (f.last_error - array['traceback', 'attrs'])::text,
    exists (select from /* schema */finished_job g where g.lane = r.lane and g.sequence_id = r.sequence_id)
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
left join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
left join lateral (
    select f.outcome, f.sequence_type, f.last_error
    from /* schema */finished_job f
    where f.lane = r.lane and f.sequence_id = r.sequence_id
    order by f.position desc
    limit 1
    for key share skip locked
) f on true
order by r.lane, r.sequence_id
