-- One entry of a job's memo, kept at once, as long as the attempt owns the job. That a wait for an event is over (`deadlines`) is kept
-- only as long as the event has not come.
update /* schema */live_job l
set memo = coalesce(l.memo, '{}') || jsonb_build_object(
    %(section)s::text, coalesce(l.memo -> %(section)s, '{}') || jsonb_build_object(%(name)s::text, %(value)s::jsonb)
)
where l.lane = %(lane)s::smallint and l.sequence_id = %(sequence_id)s::uuid and l.epoch = %(epoch)s
    and not (%(section)s = 'deadlines' and coalesce(l.memo -> 'events' ? %(name)s, false))
returning true
