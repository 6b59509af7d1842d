-- Shared by all namespaces of a database. The types are those of the original; an adopted database has them already.

do $$
begin
  if to_regtype('process_status') is null then
    create type process_status as enum ('init', 'running', 'error');
  elsif not exists (select from pg_enum where enumtypid = 'process_status'::regtype and enumlabel = 'init') then
    -- Asked first, since it needs the owner of the type even when there is nothing to add.
    alter type process_status add value 'init' before 'running';
  end if;
  if to_regtype('task_status') is null then
    create type task_status as enum ('waiting', 'running', 'blocked', 'error', 'finished', 'cancelled');
  end if;
  if to_regtype('task_type') is null then
    create type task_type as enum ('init', 'timeout', 'call', 'notify', 'repair', 'remove');
  end if;
end $$;

-- One row for each node that is trusted to run tasks. A node that is declared dead loses its row, and with it
-- the right to commit anything: progressor_hold_lease is the first statement of each of its transactions.
create table progressor_nodes (
  epoch bigint generated always as identity primary key,
  node_name text not null,
  started_at timestamptz not null default now(),
  expires_at timestamptz not null
);

-- What the functions of a namespace answer, one row for each item or follow-up.
create type progressor_outcome as (
  ord int,                     -- which item of the batch
  fate text,                   -- what became of it
  task_id bigint,
  task_type text,
  task_status text,
  scheduled_time timestamptz,
  args bytea,
  context bytea,
  task_metadata jsonb,
  attempts int,
  response bytea,
  process_id text,
  status text,                 -- from here on: the process, without its history
  detail text,
  aux_state bytea,
  metadata jsonb,
  created_at timestamptz,
  previous_status text,
  status_changed_at timestamptz,
  corrupted_by bigint,
  last_event_id bigint
);

-- Fails unless the node of this epoch still holds its lease, and keeps it from losing it until this transaction ends.
create function progressor_hold_lease(p_epoch bigint) returns void language plpgsql as $$
begin
  perform from progressor_nodes where epoch = p_epoch for key share;
  if not found then
    raise exception 'the lease of epoch % is lost', p_epoch using errcode = 'PG001';
  end if;
end $$;
