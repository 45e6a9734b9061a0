-- The live rows of sequences, held until this transaction ends, as they stand now. What is decided on them comes in the next statement.
select l.lane, l.sequence_id::text, l.position, l.epoch, l.type, l.input::text, l.attempt, l.watched, l.queue, l.priority, l.blocker_count,
    l.leased_by is not null, l.job_id::text, l.root_id::text, l.correlation_id, l.tags, l.sequence_type, l.created_at
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */live_job l on l.lane = r.lane and l.sequence_id = r.sequence_id
order by l.lane, l.sequence_id
for no key update of l
