-- A start that turned out to repeat a finished sequence, in the transaction that inserted it.
delete from /* schema */live_job l
using jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.position = 0
    and exists (select from /* schema */finished_job f where f.lane = r.lane and f.sequence_id = r.sequence_id and f.position = 0)
returning l.sequence_id::text
