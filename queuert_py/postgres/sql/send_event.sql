-- An event for a sequence: the first of a name is kept, and wakes the job that waits for it.
update /* schema */live_job l
set memo = coalesce(l.memo, '{}') || jsonb_build_object(
        'events', coalesce(l.memo -> 'events', '{}') || jsonb_build_object(%(name)s::text, %(event)s::jsonb)
    ),
    run_at = case
        when l.leased_by is null and l.memo ->> 'waiting' = %(name)s then least(l.run_at, clock_timestamp())
        else l.run_at
    end
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and not coalesce(l.memo -> 'events' ? %(name)s, false)
returning l.lane, l.queue, l.priority, l.type, l.leased_by is null and coalesce(l.memo ->> 'waiting' = %(name)s, false)
