-- The jobs that failed, held until this transaction ends.
select f.lane, f.sequence_id::text, f.position, f.job_id::text, f.type, f.input::text, f.reason, f.last_error::text, f.attempt
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */finished_job f on f.lane = r.lane and f.sequence_id = r.sequence_id
where f.outcome = 'failed'
order by f.lane, f.sequence_id
for update of f
