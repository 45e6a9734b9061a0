-- The last rows of finished sequences, held until this transaction ends: against retries, and those who are about to wait for them.
select f.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */finished_job f on f.lane = r.lane and f.sequence_id = r.sequence_id
where f.outcome <> 'continued'
order by f.lane, f.sequence_id
for update of f
