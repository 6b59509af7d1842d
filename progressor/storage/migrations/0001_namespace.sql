-- The five tables of the original Progressor. An existing database of the original is brought to its newest
-- form here; a fresh one starts with it. The next migrations treat both alike.
--
-- On large tables: of a database so old that it lacks previous_status, each row of processes is written once.

create table if not exists {processes} (
  process_id varchar(256) primary key,
  status process_status not null,
  detail text,
  aux_state bytea,
  created_at timestamptz not null default now(),
  metadata jsonb,
  corrupted_by bigint,
  previous_status process_status not null,
  status_changed_at timestamptz not null default now()
);

create table if not exists {tasks} (
  task_id bigserial primary key,
  process_id varchar(256) not null,
  task_type task_type not null,
  status task_status not null,
  scheduled_time timestamptz not null,
  running_time timestamptz,
  finished_time timestamptz,
  args bytea,
  metadata jsonb,
  idempotency_key varchar(80),
  response bytea,
  blocked_task bigint,
  last_retry_interval integer not null,
  attempts_count smallint not null,
  context bytea
);

create table if not exists {schedule} (
  task_id bigint primary key,
  process_id varchar(256) not null,
  task_type task_type not null,
  status task_status not null,
  scheduled_time timestamptz not null,
  args bytea,
  metadata jsonb,
  last_retry_interval integer not null,
  attempts_count smallint not null,
  context bytea
);

create table if not exists {running} (
  process_id varchar(256) primary key,
  task_id bigint not null,
  task_type task_type not null,
  status task_status not null,
  scheduled_time timestamptz not null,
  running_time timestamptz not null,
  args bytea,
  metadata jsonb,
  last_retry_interval integer not null,
  attempts_count smallint not null,
  context bytea
);

create table if not exists {events} (
  process_id varchar(256) not null,
  task_id bigint not null,
  event_id smallint not null,
  timestamp timestamptz default now(),
  metadata jsonb,
  payload bytea not null,
  primary key (process_id, event_id)
);

alter table {processes}
  add column if not exists previous_status process_status,
  add column if not exists status_changed_at timestamptz;
update {processes} set
    previous_status = coalesce(previous_status, status),
    status_changed_at = coalesce(status_changed_at, created_at)
  where previous_status is null or status_changed_at is null;
alter table {processes}
  alter column previous_status set not null,
  alter column status_changed_at set default now(),
  alter column status_changed_at set not null;
