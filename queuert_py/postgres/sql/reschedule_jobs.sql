-- Waiting jobs, held by this transaction, get another time: a microsecond apart, so that they run in the order in which they were given.
-- It takes the place of a sleep's.
with base as materialized (
    select clock_timestamp() as now
)
update /* schema */live_job l
set epoch = l.epoch + 1,
    run_at = greatest(base.now, %(at)s::timestamptz, base.now + %(delay)s::interval) + r.ordinal * interval '1 microsecond',
    memo = case when l.memo ? 'sleeping' then jsonb_set(l.memo, array['sleeps', l.memo ->> 'sleeping'], 'true') else l.memo end
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, ordinal integer)
cross join base
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.leased_by is null
returning l.lane, l.queue, l.priority, l.type, extract(epoch from l.run_at - clock_timestamp())::float8, l.open_blockers = 0
