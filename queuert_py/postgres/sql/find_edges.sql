-- Who of these waits, or waited, for whom of these.
select distinct b.blocker_id::text, b.sequence_id::text
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
join /* schema */job_blocker b on b.lane = r.lane and b.sequence_id = r.sequence_id
join jsonb_to_recordset(%(rows)s::jsonb) as other (lane smallint, sequence_id uuid)
    on other.lane = b.blocker_lane and other.sequence_id = b.blocker_id
