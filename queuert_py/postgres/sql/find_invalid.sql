-- Sequences that failed because a model refused the stored input, another model than that of today (by the fingerprint of its schema).
select f.lane, f.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (type text, input_schema text)
join /* schema */finished_job f on f.lane = any(%(lanes)s::smallint[]) and f.type = r.type
where f.outcome = 'failed' and f.reason = 'validation' and f.last_error -> 'attrs' ->> 'input_schema' <> r.input_schema
limit 1000
