-- Attempts that sleep or wait for an event: lease and attempt are given back, the memo says what for. An event that was faster wakes
-- the job at once. It has begun, so that its `expires` is met.
with held as (
    select * from jsonb_to_recordset(%(rows)s::jsonb) as s (
        lane smallint, sequence_id uuid, epoch bigint, name text, event boolean, delay interval, at timestamptz
    )
), mine as materialized (
    select l.lane, l.sequence_id, held.name, held.event, held.delay is not null or held.at is not null as limited,
        greatest(clock_timestamp(), coalesce(held.at, clock_timestamp() + held.delay, '9999-12-31 00:00:00+00')) as wake
    from held join /* schema */live_job l on l.lane = held.lane and l.sequence_id = held.sequence_id
    where l.epoch = held.epoch
    order by l.lane, l.sequence_id
    for no key update of l skip locked
)
update /* schema */live_job l
set leased_by = null, leased_until = null, claim_token = null, begun = false, epoch = l.epoch + 1, attempt = l.attempt - 1,
    expires_at = null,
    run_at = case when mine.event and l.memo -> 'events' ? mine.name then clock_timestamp() else mine.wake end,
    memo = coalesce(l.memo - array['waiting', 'sleeping'], '{}') || case
        when not mine.event then jsonb_build_object(
            'sleeping', mine.name, 'sleeps', coalesce(l.memo -> 'sleeps', '{}') || jsonb_build_object(mine.name, mine.wake)
        )
        when mine.limited then jsonb_build_object(
            'waiting', mine.name, 'deadlines', coalesce(l.memo -> 'deadlines', '{}') || jsonb_build_object(mine.name, mine.wake)
        )
        else jsonb_build_object('waiting', mine.name)
    end
from mine
where l.lane = mine.lane and l.sequence_id = mine.sequence_id
returning l.sequence_id::text, l.lane, l.queue, l.priority, l.type, extract(epoch from l.run_at - clock_timestamp())::float8
