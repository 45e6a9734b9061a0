-- Forget workers that hold nothing any more.
delete from /* schema */worker w
where w.id = any(%(ids)s::text[])
    and not exists (select from /* schema */live_job l where l.lane = any(%(lanes)s::smallint[]) and l.leased_by = w.id)
