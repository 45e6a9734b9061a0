-- How far running jobs are. No indexed column: the row stays on its page. A row that is locked is left out, and tried again.
with told as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as t (lane smallint, sequence_id uuid, epoch bigint, progress jsonb)
), mine as materialized (
    select l.lane, l.sequence_id, told.progress
    from told join /* schema */live_job l on l.lane = told.lane and l.sequence_id = told.sequence_id
    where l.epoch = told.epoch
    order by l.lane, l.sequence_id
    for no key update of l skip locked
)
update /* schema */live_job l set progress = mine.progress
from mine
where l.lane = mine.lane and l.sequence_id = mine.sequence_id
returning l.sequence_id::text
