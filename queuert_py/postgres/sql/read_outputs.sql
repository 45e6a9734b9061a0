-- What the blockers of claimed jobs returned, or how else they ended (null: not ended, for a job whose edges were ignored).
select b.sequence_id::text, b.blocker_id::text, f.outcome, f.output::text, f.output_type, f.last_error::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, position integer)
join /* schema */job_blocker b on b.lane = r.lane and b.sequence_id = r.sequence_id and b.position = r.position
left join lateral (
    select *
    from /* schema */finished_job f
    where f.lane = b.blocker_lane and f.sequence_id = b.blocker_id and f.outcome <> 'continued'
    order by f.position desc
    limit 1
) f on true
