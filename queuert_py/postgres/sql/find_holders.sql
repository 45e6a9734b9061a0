-- The latest finished sequence of each key, begun within the window if there is one.
select r.ordinal, f.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (ordinal integer, lane smallint, type text, key text, "window" interval)
cross join lateral (
    select f.sequence_id
    from /* schema */finished_job f
    where f.lane = r.lane and f.sequence_type = r.type and f.key = r.key
        and f.finished_at >= coalesce((select clock_timestamp()) - r."window", '-infinity')
        and f.sequence_created_at >= coalesce((select clock_timestamp()) - r."window", '-infinity')
    order by f.finished_at desc
    limit 1
) f
