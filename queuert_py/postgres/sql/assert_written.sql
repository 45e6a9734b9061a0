-- Fails (22012) unless this attempt's ending stands in the very transaction of its fence: the COMMIT pipelined behind must not succeed.
select 1 / case
    when pg_current_xact_id() = %(xid)s::xid8 and exists (
        select from /* schema */finished_job f
        where f.lane = %(lane)s::smallint and f.sequence_id = %(sequence_id)s::uuid and f.position = %(position)s and f.epoch = %(epoch)s
    ) then 1
    else 0
end
