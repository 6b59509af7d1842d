-- From the tables of the original to ours: fences, 64-bit event ids, and the shape that makes batches cheap
-- (docs/adr/0002-storage-shape.md has the measurements).
--
-- On large tables: events (a wider event_id) and tasks (a wider attempts_count) are written anew, with all their
-- indexes, and need that much free disk; schedule and running too, but they are small. Processes stays as it is. All five
-- are locked against everybody until the end of this file.

-- The engine keeps the tables consistent by itself; foreign keys cost half of the throughput. Hash indexes and the
-- full unique index go for btrees that a row touches only when it must. Their names differ from version to version.
-- An index that an operator added stays.
do $$
declare
  relation regclass;
  doomed record;
begin
  foreach relation in array array[
    {processes_name}, {tasks_name}, {schedule_name}, {running_name}, {events_name}]::regclass[]
  loop
    for doomed in
      select conname from pg_constraint where conrelid = relation and contype in ('f', 'u')
    loop
      execute format('alter table %s drop constraint %I cascade', relation, doomed.conname);
    end loop;
    for doomed in
      select c.oid::regclass as name
      from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am am on am.oid = c.relam
      where i.indrelid = relation and not i.indisprimary
        and (am.amname = 'hash' or i.indisunique or c.relname in ({our_indexes}))
    loop
      execute format('drop index %s', doomed.name);
    end loop;
    -- Very old databases have varchar(80). What is wide enough is left alone: views may depend on it.
    if exists (select from pg_attribute where attrelid = relation and attname = 'process_id'
                 and format_type(atttypid, atttypmod) <> 'character varying(256)') then
      execute format('alter table %s alter column process_id type varchar(256)', relation);
    end if;
  end loop;
end $$;

-- The name of a sequence is PostgreSQL's choice, unless somebody renamed the table; ours is fixed.
do $$
declare
  sequence regclass := pg_get_serial_sequence({tasks_name}, 'task_id');
begin
  if sequence is not null and sequence is distinct from to_regclass({tasks_sequence}) then
    execute format('alter sequence %s rename to %I', sequence, {tasks_sequence_name});
  end if;
end $$;

alter table {processes} set (fillfactor = 60);
alter table {tasks} set (fillfactor = 75);
alter table {schedule} set (fillfactor = 70);
alter table {running} set (fillfactor = 40);

alter table {tasks}
  alter column idempotency_key type text,
  alter column attempts_count type integer,
  add column waiter bigint,    -- epoch of the node whose caller waits for the answer; 0: more than one node
  add column ticket bigint;    -- with the waiter, names the request: a request sent again finds its task
alter table {schedule}
  alter column attempts_count type integer;
alter table {running}
  alter column attempts_count type integer,
  add column owner bigint,     -- epoch of the node that runs the task; null: a node of the original
  add column run_token bigint; -- new for each run: with the owner, the fence of the completion
alter table {events}
  alter column event_id type bigint;

create index {tasks_process_idx} on {tasks} (process_id);
create unique index {tasks_key_idx} on {tasks} (idempotency_key) where idempotency_key is not null;
create index {schedule_process_idx} on {schedule} (process_id, task_type, task_id);
create index {schedule_timers_idx} on {schedule} (scheduled_time, task_id)
  where status = 'waiting' and task_type in ('timeout', 'remove');
create index {schedule_calls_idx} on {schedule} (task_id)
  where status = 'waiting' and task_type in ('init', 'call', 'notify', 'repair');

-- A column of another type has no statistics, and nothing but a change of many rows would collect them.
analyze {processes}, {tasks}, {schedule}, {running}, {events};
