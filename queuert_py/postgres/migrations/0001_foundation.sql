-- One live row per unfinished sequence; finished jobs are appended and never touched again on the hot path.

create table /* schema */live_job (
    lane smallint not null default 0,
    sequence_id uuid not null,
    position integer not null default 0,
    job_id uuid not null,
    root_id uuid not null,
    origin_id uuid,
    sequence_type text not null,
    type text not null,
    queue text not null default 'default',
    priority smallint not null default 0,
    run_at timestamptz not null default clock_timestamp(),
    input jsonb not null,
    attempt integer not null default 0,
    crash_count integer not null default 0,
    epoch bigint not null default (extract(epoch from clock_timestamp()) * 1000000)::bigint,
    claim_token uuid,
    leased_by text,
    leased_at timestamptz,
    leased_until timestamptz,
    begun boolean not null default false,
    open_blockers integer not null default 0 check (open_blockers >= 0),
    blocker_count integer not null default 0,
    watched boolean not null default false,
    key text,
    correlation_id text,
    tags text[],
    trace_context text,
    progress jsonb,
    memo jsonb,
    last_error jsonb,
    max_attempts integer check (max_attempts >= 0),
    backoff jsonb,
    timeout interval,
    created_at timestamptz not null default clock_timestamp(),
    sequence_created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz,
    primary key (lane, sequence_id),
    check ((leased_by is null) = (leased_until is null))
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0
);

create index live_job_ready on /* schema */live_job (lane, queue, priority desc, run_at, sequence_id)
where leased_by is null and open_blockers = 0;

create index live_job_leased on /* schema */live_job (lane, leased_by) where leased_by is not null;

create unique index live_job_step on /* schema */live_job (lane, job_id) where position > 0;

create unique index live_job_key on /* schema */live_job (lane, sequence_type, key) where key is not null;

create table /* schema */finished_job (
    lane smallint not null,
    sequence_id uuid not null,
    position integer not null,
    job_id uuid not null,
    root_id uuid not null,
    origin_id uuid,
    sequence_type text not null,
    type text not null,
    queue text not null,
    priority smallint not null,
    run_at timestamptz not null,
    input jsonb not null,
    outcome text not null check (outcome in ('completed', 'continued', 'failed', 'cancelled', 'expired')),
    reason text,
    output jsonb,
    output_type text,
    attempt integer not null,
    crash_count integer not null,
    epoch bigint not null,
    key text,
    correlation_id text,
    tags text[],
    trace_context text,
    last_error jsonb,
    blocker_count integer not null,
    max_attempts integer,
    backoff jsonb,
    timeout interval,
    created_at timestamptz not null,
    sequence_created_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz not null,
    finished_by text,
    primary key (lane, sequence_id, position)
) with (autovacuum_vacuum_insert_scale_factor = 0.1);

create index finished_job_step on /* schema */finished_job (lane, job_id) where position > 0;

create index finished_job_time on /* schema */finished_job using brin (finished_at);

create index finished_job_failed on /* schema */finished_job (lane, sequence_type, finished_at) where outcome = 'failed';

create index finished_job_key on /* schema */finished_job (lane, sequence_type, key, finished_at) where key is not null;

create table /* schema */job_blocker (
    blocker_lane smallint not null,
    blocker_id uuid not null,
    lane smallint not null,
    sequence_id uuid not null,
    position integer not null,
    ordinal integer not null,
    primary key (blocker_lane, blocker_id, lane, sequence_id, position, ordinal)
);

create index job_blocker_job on /* schema */job_blocker (lane, sequence_id, position);

create table /* schema */attempt_log (
    lane smallint not null,
    sequence_id uuid not null,
    position integer not null,
    epoch bigint not null,
    outcome text not null check (outcome in ('error', 'timeout', 'lost', 'released', 'snoozed', 'failed', 'retried', 'validation')),
    attempt integer not null,
    crash_count integer not null,
    type text not null,
    error jsonb,
    started_at timestamptz,
    finished_at timestamptz not null default clock_timestamp(),
    worker text,
    primary key (lane, sequence_id, position, epoch, outcome)
);

create index attempt_log_time on /* schema */attempt_log using brin (finished_at);

create table /* schema */queue (
    name text primary key,
    paused boolean not null default false,
    limits jsonb
);

create table /* schema */schedule (
    name text primary key,
    cron text not null,
    tz text not null default 'UTC',
    type text not null,
    input jsonb not null,
    options jsonb not null default '{}',
    policy jsonb not null default '{}',
    paused boolean not null default false,
    next_at timestamptz,
    last_at timestamptz,
    last_sequence_id uuid
);

create table /* schema */worker (
    id text primary key,
    presence integer not null,
    name text not null,
    host text not null,
    pid integer not null,
    version text not null,
    queues text[] not null,
    types text[] not null,
    concurrency integer not null,
    running integer not null default 0,
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp()
);

create table /* schema */stat (
    minute timestamptz not null,
    type text not null,
    outcome text not null,
    worker text not null,
    jobs bigint not null,
    milliseconds bigint not null,
    primary key (minute, type, outcome, worker)
);

create view /* schema */job as
select
    lane,
    sequence_id,
    position,
    job_id,
    root_id,
    origin_id,
    sequence_type,
    type,
    case
        when leased_by is not null then 'running'
        when open_blockers > 0 then 'blocked'
        when run_at > clock_timestamp() then 'scheduled'
        else 'pending'
    end as status,
    null::text as reason,
    queue,
    priority,
    run_at,
    input,
    null::jsonb as output,
    null::text as output_type,
    attempt,
    crash_count,
    key,
    correlation_id,
    tags,
    last_error,
    progress,
    open_blockers,
    blocker_count,
    created_at,
    sequence_created_at,
    leased_at as started_at,
    null::timestamptz as finished_at,
    leased_by as worker
from /* schema */live_job
union all
select
    lane,
    sequence_id,
    position,
    job_id,
    root_id,
    origin_id,
    sequence_type,
    type,
    outcome,
    reason,
    queue,
    priority,
    run_at,
    input,
    output,
    output_type,
    attempt,
    crash_count,
    key,
    correlation_id,
    tags,
    last_error,
    null::jsonb,
    0,
    blocker_count,
    created_at,
    sequence_created_at,
    started_at,
    finished_at,
    finished_by
from /* schema */finished_job;

create view /* schema */sequence as
select
    last.lane,
    last.sequence_id,
    last.sequence_type as type,
    last.status,
    last.reason,
    last.key,
    last.correlation_id,
    last.tags,
    last.root_id,
    last.position + 1 as steps,
    last.type as current_type,
    last.attempt,
    case
        when last.position = 0 then last.input
        else (
            select first.input
            from /* schema */finished_job first
            where first.lane = last.lane and first.sequence_id = last.sequence_id and first.position = 0
        )
    end as input,
    last.output,
    last.output_type,
    last.last_error,
    last.progress,
    last.run_at,
    last.sequence_created_at as created_at,
    last.finished_at,
    last.worker
from /* schema */job last
where last.status <> 'continued';
