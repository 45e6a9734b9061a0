-- Where sequences stand: their ending if they have one, else whether they are watched (null: no live row either).
select r.sequence_id::text, l.watched, f.outcome, f.reason, f.output::text, f.output_type, f.last_error, f.type
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
left join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
left join lateral (
    select * from /* schema */finished_job f
    where f.lane = r.lane and f.sequence_id = r.sequence_id and f.outcome <> 'continued'
    order by f.position desc limit 1
) f on true
