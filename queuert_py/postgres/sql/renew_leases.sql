-- All leases of a worker, in one statement. A row that is not returned is locked (then its lock keeps it) or lost: read_fates tells.
with held as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as h (lane smallint, sequence_id uuid, epoch bigint, begun boolean)
), mine as materialized (
    select l.lane, l.sequence_id, held.begun
    from held join /* schema */live_job l on l.lane = held.lane and l.sequence_id = held.sequence_id
    where l.epoch = held.epoch
    order by l.lane, l.sequence_id
    for no key update of l skip locked
)
update /* schema */live_job l
set leased_until = clock_timestamp() + %(lease)s, begun = l.begun or mine.begun
from mine
where l.lane = mine.lane and l.sequence_id = mine.sequence_id
returning l.sequence_id::text, l.epoch
