-- name: upcoming
-- Timers that are due, or will be within the horizon, after a place in the order of time.
select task_id, process_id, scheduled_time from {schedule}
where status = 'waiting' and task_type in ('timeout', 'remove')
  and scheduled_time < clock_timestamp() + %(horizon)s
  and (scheduled_time, task_id) > (%(after_time)s, %(after_task)s)
order by scheduled_time, task_id limit %(limit)s

-- name: waiting_calls
-- Calls, and all that is handled like them, of processes that run nothing; the first of each process.
select distinct on (s.process_id) s.task_id, s.process_id, s.scheduled_time
from {schedule} s join {processes} p using (process_id)
where s.status = 'waiting' and s.task_type in ('init', 'call', 'notify', 'repair')
  and s.scheduled_time <= clock_timestamp() and (p.status <> 'error' or s.task_type = 'repair')
  and not exists (select from {running} r where r.process_id = s.process_id)
order by s.process_id, s.task_id limit %(limit)s

-- name: results
select task_id, status::text, response from {tasks} where task_id = any(%(tasks)s)

-- name: process
select p.process_id, p.status::text, p.detail, p.aux_state, p.metadata, p.created_at, p.previous_status::text,
  p.status_changed_at, p.corrupted_by,
  (select coalesce(max(event_id), 0) from {events} e where e.process_id = p.process_id) as last_event_id,
  e.ids, e.times, e.tasks, e.payloads, e.metadatas
from {processes} p
left join lateral (
  select array_agg(event_id) as ids, array_agg(timestamp) as times, array_agg(task_id) as tasks,
    array_agg(payload) as payloads, array_agg(metadata::text) as metadatas
  from ({slice}) slice) e on true
where p.process_id = %(id)s

-- name: reading
-- The same with the snapshot that it was read in, and the end of the WAL afterwards; one row even when there is no process.
select pg_current_snapshot()::text, (pg_current_wal_insert_lsn() - '0/0')::bigint, found.*
from (values (1)) as always left join ({process}) found on true

-- name: forward
select event_id, timestamp, task_id, payload, metadata from {events}
where process_id = %(id)s and event_id > %(offset)s order by event_id limit %(limit)s

-- name: backward
select event_id, timestamp, task_id, payload, metadata from {events}
where process_id = %(id)s and event_id < %(offset)s order by event_id desc limit %(limit)s

-- name: timer
select scheduled_time from {schedule}
where process_id = %(id)s and task_type::text in ('timeout', 'remove') order by task_id limit 1

-- name: broken_task
select t.task_id, t.task_type::text, t.args, t.context from {tasks} t where t.task_id = %(task)s

-- name: modernize
-- Only what is still as it was read: the process may have been removed and made anew, or somebody was faster.
update {events} set payload = %(payload)s, metadata = %(metadata)s
where process_id = %(id)s and event_id = %(event)s
  and payload = %(old_payload)s and coalesce(metadata, '{{}}') = %(old_metadata)s
returning event_id

-- name: put_process
insert into {processes} (process_id, status, detail, aux_state, metadata, created_at, previous_status, status_changed_at,
                         corrupted_by)
values (%(id)s, %(status)s::process_status, %(detail)s, %(aux_state)s, %(metadata)s, coalesce(%(created_at)s::timestamptz, now()),
        coalesce(%(previous_status)s::process_status, %(status)s::process_status), coalesce(%(status_changed_at)s::timestamptz, now()), null)
on conflict do nothing

-- name: put_task
-- The task that the imported history belongs to.
insert into {tasks} (process_id, task_type, status, scheduled_time, running_time, finished_time, metadata, response,
                     last_retry_interval, attempts_count, context)
values (%(id)s, 'init', 'finished', now(), now(), now(), '{{"kind": "put"}}', {ok}, 0, 0, %(context)s::bytea)
returning task_id

-- name: put_events
insert into {events} (process_id, task_id, event_id, timestamp, payload, metadata)
select %(id)s, %(task)s, * from unnest(%(ids)s::bigint[], %(times)s::timestamptz[], %(payloads)s::bytea[],
                                       %(metadatas)s::jsonb[])

-- name: put_timer
with task as (
  insert into {tasks} (process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context)
  values (%(id)s, %(type)s::task_type, 'waiting', %(at)s::timestamptz, 0, 0, %(context)s::bytea)
  returning task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context)
insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, last_retry_interval, attempts_count, context)
select * from task returning task_id

-- name: trace
select t.task_id, t.task_type::text, coalesce(r.status, s.status, t.status)::text, t.scheduled_time,
  coalesce(r.running_time, t.running_time), t.finished_time, t.args, t.metadata, t.context, t.idempotency_key, t.response,
  coalesce(s.last_retry_interval, t.last_retry_interval), coalesce(s.attempts_count, r.attempts_count, t.attempts_count),
  e.ids, e.times, e.payloads, e.metadatas
from (
  select task_id, process_id, task_type, status, scheduled_time, running_time, finished_time, args, metadata, context,
    idempotency_key, response, last_retry_interval, attempts_count
  from {tasks} where process_id = %(id)s
  union all
  select task_id, process_id, task_type, status, scheduled_time, running_time, null, args, metadata, context,
    null, null, last_retry_interval, attempts_count
  from {running} r where process_id = %(id)s and not exists (select from {tasks} t where t.task_id = r.task_id)) t
left join {schedule} s using (task_id)
left join {running} r on r.process_id = t.process_id and r.task_id = t.task_id
left join lateral (
  select array_agg(event_id order by event_id) as ids, array_agg(timestamp order by event_id) as times,
    array_agg(payload order by event_id) as payloads, array_agg(metadata::text order by event_id) as metadatas
  from {events} e where e.process_id = %(id)s and e.task_id = t.task_id) e on true
where exists (select from {processes} where process_id = %(id)s)
  and not (t.task_type = 'remove' and t.status = 'finished')
order by t.task_id

-- name: list
select process_id, status::text, detail, aux_state, metadata, created_at, previous_status::text, status_changed_at,
  corrupted_by, (select coalesce(max(event_id), 0) from {events} e where e.process_id = p.process_id) as last_event_id
from {processes} p
where (%(cursor)s::text is null or process_id > %(cursor)s)
  and (%(status)s::text is null or status::text = %(status)s)
  and (%(prefix)s::text is null or starts_with(process_id, %(prefix)s))
  and (%(metadata)s::jsonb is null or metadata @> %(metadata)s)
  and (%(created_from)s::timestamptz is null or created_at >= %(created_from)s)
  and (%(created_to)s::timestamptz is null or created_at < %(created_to)s)
  and (%(changed_from)s::timestamptz is null or status_changed_at >= %(changed_from)s)
  and (%(changed_to)s::timestamptz is null or status_changed_at < %(changed_to)s)
order by process_id limit %(limit)s

-- name: take_outbox
select pg_try_advisory_lock({publishing}, {outbox_name}::regclass::oid::int)

-- name: end_dead_publisher
-- Of a node that was declared dead, or a lost connection of this one.
select pg_terminate_backend(pid)
from pg_locks join pg_stat_activity using (pid)
  cross join lateral substring(application_name from {publisher}) epoch
where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
  and classid = {publishing} and objid = {outbox_name}::regclass and objsubid = 2 and granted
  and (epoch = %(epoch)s or epoch not in (select n.epoch::text from progressor_nodes n))

-- name: outbox_drawn
select coalesce(pg_sequence_last_value({outbox_sequence}), 0)

-- name: outbox_horizon
-- The number of this transaction is larger than that of any that has begun. The snapshot's xmax is not: it is behind the
-- last that has ended.
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_current_xact_id()::text::bigint

-- name: messages
-- In their order, as many as have `bytes` and one more.
select message_id, process_id, notice, coalesce(timestamp, written_at), event_id, metadata::text, payload, reason,
  extract(epoch from clock_timestamp() - written_at)::float8, waits
from (
  select *, sum(size) over (order by message_id) - size as before from (
    select *, coalesce(octet_length(payload), 0) + coalesce(pg_column_size(metadata), 0) as size
    from ({source}) source) sized) sized
where before < %(bytes)s order by message_id

-- name: outbox
-- A message waits when its process has a dead letter. Mostly there are none at all, which is asked once.
select o.*, dead is not null as waits
from (select * from {outbox} where message_id > %(after)s order by message_id limit %(limit)s) o
left join lateral (
  select true as dead from {dead_letters} d
  where d.process_id = o.process_id and %(holds_back)s and (select exists (select from {dead_letters})) limit 1) d on true

-- name: letters
select *, false as waits from {dead_letters}
where refusal is null and (ready or not %(holds_back)s) order by message_id limit %(limit)s

-- name: outbox_figures
select coalesce(pg_sequence_last_value({outbox_sequence}) - first.message_id + 1, 0), coalesce(first.age, 0),
  (select count(*) from (select from {dead_letters} where refusal is not null limit %(most)s) d),
  (select count(*) from (select from {dead_letters} where refusal is null limit %(most)s) d)
from (values (1)) one left join (
  select message_id, extract(epoch from clock_timestamp() - written_at)::float8 as age
  from {outbox} where message_id > %(after)s order by message_id limit 1) first on true
