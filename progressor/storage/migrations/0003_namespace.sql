-- What is to be published (docs/adr/0008-outbox.md). The transactions of steps write it, one publisher in the cluster
-- deletes it when the broker has it. Both tables are empty where there is no notifier.

create table {outbox} (
  message_id bigserial primary key,  -- drawn under the lock of the process: grows in the order of its commits
  process_id varchar(256) not null,
  notice text not null,              -- event, created, working, failed, removed
  written_at timestamptz not null default clock_timestamp(),
  event_id bigint,                   -- from here on: of an event
  timestamp timestamptz,
  metadata jsonb,
  payload bytea,
  reason text                        -- why the process failed
);

-- What the broker refused, and what waits behind it.
create table {dead_letters} (
  message_id bigint primary key,
  process_id varchar(256) not null,
  notice text not null,
  written_at timestamptz not null,
  event_id bigint,
  timestamp timestamptz,
  metadata jsonb,
  payload bytea,
  reason text,
  parked_at timestamptz not null default clock_timestamp(),
  refusal text,                      -- why it was refused; null: it waits behind one that was, or goes again
  ready boolean not null default false  -- without a refusal: whether it is to be sent
);

create index {dead_letters_process_idx} on {dead_letters} (process_id);
create index {dead_letters_refused_idx} on {dead_letters} (process_id, message_id) where refusal is not null;
create index {dead_letters_ready_idx} on {dead_letters} (ready, message_id) where refusal is null;
