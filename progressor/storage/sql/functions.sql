-- The write side of a namespace. One use case is one function, and each takes arrays: a batch of many
-- processes is one call. They run inside the writer's transaction, after progressor_hold_lease and {lock}.
--
-- Locks: a row of {processes} guards everything that belongs to the process. It is taken first, in the order of
-- process_id; the rest needs no order of its own. {claim} and {takeover} skip what is locked and so never wait.
--
-- The planner knows nothing of what is in a schedule: it is empty when statistics are taken, and long when it matters. So
-- its rows are found by the index on (process_id, task_type, task_id): `status::text` keeps the planner off the partial
-- indexes, which belong to the scans, and `lateral ... offset 0` off other orders of joining.
--
-- Sizes: prepare handles item after item, since requests differ and a call may follow an init of the same batch.
-- complete is the hot path, ten thousand a second, and works on whole sets: at most one item a process.

-- Locks the processes of a batch.
create or replace function {lock}(p_ids text[]) returns void language plpgsql as $$
begin
  perform from {processes} where process_id = any(p_ids) order by process_id for update;
end $$;

-- Wakes the other nodes whose callers wait for these tasks. A payload is at most 8000 bytes.
create or replace function {announce}(p_waiters bigint[], p_tasks bigint[]) returns void language plpgsql as $$
begin
  perform pg_notify('progressor_' || waiter, {namespace} || ':' || string_agg(task_id::text, ','))
    from (select waiter, task_id, row_number() over (partition by waiter) / 300 as page
          from unnest(p_waiters, p_tasks) as t(waiter, task_id)) numbered
    group by waiter, page;
end $$;

-- Removes processes with all that belongs to them. What is left is the answered remove request of a client that
-- gave an idempotency key: it may ask again. Returns the tasks that somebody may still be waiting for. Whatever the
-- reason for a removal, it is made known here.
create or replace function {erase}(p_lifecycle boolean, p_ids text[]) returns bigint[] language plpgsql as $$
declare
  v_open bigint[];
  v_waiters bigint[];
begin
  select array_agg(t.task_id), array_agg(t.waiter) into v_open, v_waiters
    from {schedule} s join {tasks} t using (task_id) where s.process_id = any(p_ids) and t.waiter is not null;
  if v_open is not null then
    perform {announce}(v_waiters, v_open);
  end if;
  delete from {schedule} where process_id = any(p_ids);
  delete from {running} where process_id = any(p_ids);
  delete from {events} where process_id = any(p_ids);
  delete from {tasks} where process_id = any(p_ids)
    and (task_type <> 'remove' or idempotency_key is null);
  update {tasks} set status = 'finished', finished_time = clock_timestamp(), response = {ok}
    where process_id = any(p_ids) and status <> 'finished';
  delete from {processes} where process_id = any(p_ids);
  if p_lifecycle then
    insert into {outbox} (process_id, notice) select id, 'removed' from unnest(p_ids) id;
  end if;
  return v_open;
end $$;

-- What runs under these tokens of this node: fate `started`, with the task and its process. It has no response yet: there stands the
-- task that wrote the last event, as int8send makes it. It tells a history from that of a later process which was `put` with the
-- same created_at.
create or replace function {started}(
  p_epoch bigint, a_pid text[], a_token bigint[]
) returns setof progressor_outcome language sql stable as $$
  select i.ord::int, 'started', r.task_id, r.task_type::text, r.status::text, r.scheduled_time, r.args, r.context, r.metadata,
    r.attempts_count, int8send(e.task_id), r.process_id::text, p.status::text, p.detail, p.aux_state, p.metadata, p.created_at,
    p.previous_status::text, p.status_changed_at, p.corrupted_by,
    coalesce(e.event_id, 0)
  from unnest(a_pid, a_token) with ordinality as i(pid, token, ord)
  join {running} r on r.process_id = i.pid and r.owner = p_epoch and r.run_token = i.token
  join {processes} p on p.process_id = i.pid
  left join lateral (
    select event_id, task_id from {events} where process_id = i.pid order by event_id desc limit 1) e on true
$$;

-- Accepts requests, those to one process in their order: checks each against its process and stores its task, running (fate `started`: the
-- caller runs it under a_token) or waiting behind others (`queued`). A request whose idempotency key is known, or with
-- p_again (the answer to a batch was lost, this is the same batch) its token, has no second effect: `answered` (finished), `joined` (in progress) or `conflict`. Refusals are fates that begin
-- with `process`. `in doubt`: a removal without a key may have been done when the batch was sent first, and the process that is there be
-- a later one. A removed process leaves `removed` and one `gone` for each task that waited. p_lifecycle: whether the
-- outbox is to have a message of processes that are removed or repaired here.
create or replace function {prepare}(
  p_epoch bigint, p_again boolean, p_lifecycle boolean,
  a_op text[], a_pid text[], a_args bytea[], a_context bytea[], a_key text[], a_metadata jsonb[], a_token bigint[]
) returns setof progressor_outcome language plpgsql as $$
declare
  v_now timestamptz := clock_timestamp();
  item record;
  known {tasks};
  broken {tasks};
  v_status process_status;
  v_type task_type;
  v_task bigint;
  v_busy boolean;
  v_gone bigint[];
  o progressor_outcome;
begin
  for item in
    select * from unnest(a_op, a_pid, a_args, a_context, a_key, a_metadata, a_token)
      with ordinality as i(op, pid, args, context, key, metadata, token, ord)
    order by i.pid, i.ord  -- new processes cannot be locked before: two batches must make them in one order
  loop
    o := null;
    o.ord := item.ord;
    o.process_id := item.pid;
    v_type := case item.op when 'simple_repair' then 'repair' else item.op end;
    <<attempt>>
    loop
      -- A request that was seen before.
      known := null;
      if item.key is not null then
        select * into known from {tasks} where idempotency_key = item.key;
      elsif p_again then
        select * into known from {tasks} where process_id = item.pid and ticket = item.token;
      end if;
      if known.task_id is not null then
        o.task_id := known.task_id;
        if known.process_id <> item.pid
           or known.metadata ->> 'kind' is distinct from item.metadata ->> 'kind'
           or (item.op <> 'simple_repair'
               and (known.task_type <> v_type or coalesce(known.args, '') <> coalesce(item.args, ''))) then
          o.fate := 'conflict';
        elsif known.status in ('finished', 'error', 'cancelled') then
          o.fate := 'answered';
          o.task_status := known.status;
          o.response := known.response;
          o.scheduled_time := known.scheduled_time;
        else
          o.fate := 'joined';
          update {tasks} set waiter = 0 where task_id = known.task_id and waiter not in (p_epoch, 0);
          perform from {running}
            where process_id = item.pid and task_id = known.task_id and owner = p_epoch and run_token = item.token;
          if found then
            o.fate := 'started';
          end if;
        end if;
        exit attempt;
      end if;

      -- Locked already, unless it was made after {lock} looked.
      select status into v_status from {processes} where process_id = item.pid for update;
      if item.op = 'init' then
        o.fate := case when found then 'process already exists' end;
      elsif not found then  -- a request to remove leaves no trace: this one was done when the batch was sent first
        o.fate := case when p_again and item.op = 'remove' then 'removed' else 'process not found' end;
        o.task_id := 0;
      elsif p_again and item.op = 'remove' and item.key is null then
        o.fate := 'in doubt';
      elsif item.op in ('call', 'notify') then
        o.fate := case when v_status = 'error' then 'process is error' end;
      elsif item.op in ('repair', 'simple_repair') then
        o.fate := case v_status when 'running' then 'process is running' when 'init' then 'process is init' end;
      end if;
      if o.fate is not null then
        -- What speaks against it may be its own doing, on another node, since we looked for the key.
        continue attempt when item.key is not null and exists (select from {tasks} where idempotency_key = item.key);
        exit attempt;
      end if;

      select exists (select from {running} where process_id = item.pid)
        or (item.op in ('call', 'notify', 'repair') and exists (
          select from {schedule} where process_id = item.pid and status::text = 'waiting' and scheduled_time <= v_now
            and (task_type = 'repair') = (item.op = 'repair') and task_type::text in ('init', 'call', 'notify', 'repair')))
        into v_busy;
      broken := null;
      if item.op = 'simple_repair' then
        if v_busy then
          o.fate := 'process is running';
          exit attempt;
        end if;
        select t.* into broken from {tasks} t join {processes} p on p.corrupted_by = t.task_id
          where p.process_id = item.pid and t.task_type in ('timeout', 'remove');
        v_type := coalesce(broken.task_type, v_type);
        if broken.task_id is not null and exists (select from {schedule}
            where process_id = item.pid and task_type::text in ('timeout', 'remove')) then
          o.fate := 'process is running';  -- it is being repaired: the task waits for another attempt
          exit attempt;
        end if;
      end if;

      insert into {tasks} (process_id, task_type, status, scheduled_time, running_time, args, metadata,
                           idempotency_key, last_retry_interval, attempts_count, context, waiter, ticket)
        values (item.pid, v_type, case when v_busy then 'waiting' else 'running' end::task_status, v_now,
                case when not v_busy then v_now end, coalesce(broken.args, item.args), item.metadata,
                item.key, 0, 0, item.context, p_epoch, item.token)
        on conflict (idempotency_key) where idempotency_key is not null do nothing
        returning task_id into v_task;
      continue attempt when not found;  -- another node took the key in this moment
      o.task_id := v_task;

      if item.op = 'init' then
        insert into {processes} (process_id, status, previous_status, created_at, status_changed_at)
          values (item.pid, 'init', 'init', v_now, v_now) on conflict do nothing;
        if not found then
          delete from {tasks} where task_id = v_task;
          continue attempt;
        end if;
      elsif item.op = 'remove' and not v_busy then
        v_gone := {erase}(p_lifecycle, array[item.pid]);
        o.fate := 'removed';
        exit attempt;
      elsif item.op = 'simple_repair' and broken.task_id is null then
        update {tasks} set status = 'finished', finished_time = v_now, response = {ok} where task_id = v_task;
        update {processes} set status = 'running', previous_status = 'error', status_changed_at = v_now,
          detail = null, corrupted_by = null where process_id = item.pid;
        if p_lifecycle then
          insert into {outbox} (process_id, notice) values (item.pid, 'working');
        end if;
        o.fate := 'repaired';
        exit attempt;
      end if;

      if v_busy then
        insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, args, metadata,
                                last_retry_interval, attempts_count, context)
          values (v_task, item.pid, v_type, 'waiting', v_now, item.args, item.metadata, 0, 0, item.context);
        o.fate := 'queued';
      else
        insert into {running} (process_id, task_id, task_type, status, scheduled_time, running_time, args, metadata,
                               last_retry_interval, attempts_count, context, owner, run_token)
          values (item.pid, v_task, v_type, 'running', v_now, v_now, coalesce(broken.args, item.args), item.metadata,
                  0, 0, item.context, p_epoch, item.token);
        if item.op <> 'init' then
          update {schedule} set status = 'blocked'
            where process_id = item.pid and status::text = 'waiting' and task_type::text in ('timeout', 'remove');
        end if;
        o.fate := 'started';
      end if;
      exit attempt;
    end loop;

    if o.fate <> 'started' then
      return next o;
    end if;
    if v_gone is not null then
      return query select item.ord::int, 'gone', id, null, null, null::timestamptz, null::bytea, null::bytea, null::jsonb,
        null::int, null::bytea, item.pid, null, null, null::bytea, null::jsonb, null::timestamptz, null,
        null::timestamptz, null::bigint, null::bigint from unnest(v_gone) id;
      v_gone := null;
    end if;
  end loop;
  return query select * from {started}(p_epoch, a_pid, a_token);
end $$;

-- Commits the results of steps. An item applies only while its process still runs under the item's token (the fence);
-- otherwise its fate is `lost`, with what the database knows about the task. An applied item is `done`, or `next` when
-- the process goes on at once under the token a_next: with a waiting call, or a timer that is due. `timer` rows tell of
-- timers that wait, by their processes, `failed` and `obsolete` rows of waiting calls that were cancelled because the process is in error or
-- of repairs because it is not, `gone` rows of tasks that went with a removed process.
--
-- a_outcome: finished, error, or retry (the task itself waits again, until a_at).
-- a_timer: keep, now, at (a new task of a_type, due now or at a_at), unset, or remove (the process, now).
-- p_events, p_lifecycle: whether the outbox is to have the events, and what is said in a_notice.
create or replace function {complete}(
  p_epoch bigint, p_events boolean, p_lifecycle boolean,
  a_pid text[], a_task bigint[], a_token bigint[], a_next bigint[],
  a_outcome text[], a_response bytea[], a_status text[], a_detail text[], a_corrupted bigint[], a_notice text[],
  a_aux bytea[], a_metadata jsonb[],
  a_timer text[], a_type text[], a_at timestamptz[], a_args bytea[], a_context bytea[],
  a_attempts int[], a_interval int[],
  e_ord int[], e_id bigint[], e_at timestamptz[], e_payload bytea[], e_metadata jsonb[]
) returns setof progressor_outcome language plpgsql as $$
declare
  v_now timestamptz := clock_timestamp();
  v_lost int[];
  v_doomed int[];
  v_broken int[];          -- items that bring their process into error
  v_more int[];
  v_next progressor_outcome[];
  v_new bigint[];          -- task ids of new timers, by ord
  v_ids bigint[];
  v_waiters bigint[];
  o progressor_outcome;
begin
  -- The fence.
  select array_agg(i.ord) into v_lost
    from unnest(a_pid, a_token) with ordinality as i(pid, token, ord)
    where not exists (select from {running} r
      where r.process_id = i.pid and r.owner = p_epoch and r.run_token = i.token);
  if v_lost is not null then
    return query
      select i.ord::int, case when r.task_id is null then 'lost' else 'next' end, coalesce(r.task_id, i.task),
        r.task_type::text, t.status::text, r.scheduled_time, r.args, r.context, r.metadata, r.attempts_count, t.response,
        i.pid, case when p.process_id is null then 'gone' else p.status::text end, null, null::bytea, null::jsonb,
        null::timestamptz, null, null::timestamptz, null::bigint, null::bigint
      from unnest(a_pid, a_task, a_next) with ordinality as i(pid, task, next, ord)
      left join {running} r on r.process_id = i.pid and r.owner = p_epoch and r.run_token = i.next
      left join {tasks} t on t.task_id = i.task
      left join {processes} p on p.process_id = i.pid
      where i.ord = any(v_lost);
    if array_length(v_lost, 1) = array_length(a_pid, 1) then
      return;
    end if;
  end if;

  -- `now` is by the clock of the node. Where that is ahead the timer waits, but not for a difference that every two clocks
  -- have: what is to go on at once shall.
  if 'now' = any(a_timer) then
    if exists (select from unnest(a_timer, a_at) as i(timer, at) where i.timer = 'now' and i.at > v_now + interval '1 s') then
      select array_agg(case when i.timer = 'now' and i.at > v_now + interval '1 s' then 'at' else i.timer end order by i.ord)
        into a_timer from unnest(a_timer, a_at) with ordinality as i(timer, at, ord);
    end if;
  end if;

  -- Which items have something in the schedule: a timer, waiting calls, a request to be removed. Mostly none.
  select array_agg(i.ord) into v_more
    from unnest(a_pid) with ordinality as i(pid, ord)
    cross join lateral (select from {schedule} s where s.process_id = i.pid limit 1) s
    where v_lost is null or i.ord <> all(v_lost);
  select array_agg(i.ord) into v_doomed
    from unnest(a_timer) with ordinality as i(timer, ord)
    where i.timer = 'remove' and (v_lost is null or i.ord <> all(v_lost));
  if v_more is not null then
    select v_doomed || array_agg(ord) into v_doomed
      from unnest(v_more) ord
      cross join lateral (
        select from {schedule} s where s.process_id = a_pid[ord] and s.task_type = 'remove'
          and s.metadata ->> 'kind' = 'request' limit 1) request
      where ord <> all(coalesce(v_doomed, '{{}}'));
  end if;

  -- The results. A timer that ran at once has no task row yet (see below).
  with ended as (
    select r.*, i.outcome, i.response, i.due, i.attempts, i.wait
    from unnest(a_pid, a_outcome, a_response, a_at, a_attempts, a_interval) with ordinality
      as i(pid, outcome, response, due, attempts, wait, ord)
    join {running} r on r.process_id = i.pid
    where v_lost is null or i.ord <> all(v_lost))
  , inserted as (
    insert into {tasks} (task_id, process_id, task_type, status, scheduled_time, running_time, finished_time, args,
                         metadata, response, last_retry_interval, attempts_count, context)
      select task_id, process_id, task_type,
        case outcome when 'retry' then 'waiting' else outcome end::task_status,
        case outcome when 'retry' then due else scheduled_time end, running_time,
        case when outcome <> 'retry' then v_now end, args, metadata, response, wait, attempts, context
      from ended e where not exists (select from {tasks} t where t.task_id = e.task_id))
  , answered as (
    update {tasks} t set status = case e.outcome when 'retry' then 'waiting' else e.outcome end::task_status,
      scheduled_time = case e.outcome when 'retry' then e.due else e.scheduled_time end,
      running_time = e.running_time, finished_time = case when e.outcome <> 'retry' then v_now end, response = e.response,
      last_retry_interval = e.wait, attempts_count = e.attempts
    from ended e where t.task_id = e.task_id
    returning t.task_id, t.waiter, t.status)
  select array_agg(waiter), array_agg(task_id) into v_waiters, v_ids from answered
    where waiter <> p_epoch and status <> 'waiting';
  if v_ids is not null then
    perform {announce}(v_waiters, v_ids);
  end if;

  -- A step that only adds events leaves its process as it is: no row for the WAL, and none for those who follow it.
  update {processes} p set
    status = i.status::process_status,
    previous_status = case when p.status::text = i.status then p.previous_status else p.status end,
    status_changed_at = case when p.status::text = i.status then p.status_changed_at else v_now end,
    detail = i.detail,
    corrupted_by = i.corrupted,
    aux_state = coalesce(i.aux, p.aux_state),
    metadata = coalesce(i.metadata, p.metadata)
  from unnest(a_pid, a_status, a_detail, a_corrupted, a_aux, a_metadata) with ordinality
    as i(pid, status, detail, corrupted, aux, metadata, ord)
  where p.process_id = i.pid and (v_lost is null or i.ord <> all(v_lost))
    and (p.status::text <> i.status or i.aux is not null or i.metadata is not null
      or p.detail is distinct from i.detail or p.corrupted_by is distinct from i.corrupted);

  insert into {events} (process_id, task_id, event_id, timestamp, payload, metadata)
    select i.pid, i.task, e.id, e.at, e.payload, e.metadata
    from unnest(e_ord, e_id, e_at, e_payload, e_metadata) as e(ord, id, at, payload, metadata)
    cross join lateral (select a_pid[e.ord] as pid, a_task[e.ord] as task) i
    where v_lost is null or e.ord <> all(v_lost);

  -- The messages, of each process in the order in which they are published. The ids are drawn in the order of the rows.
  if p_lifecycle then
    insert into {outbox} (process_id, notice, reason)
      select i.pid, i.notice, i.detail
      from unnest(a_pid, a_notice, a_detail) with ordinality as i(pid, notice, detail, ord)
      where i.notice is not null and (v_lost is null or i.ord <> all(v_lost)) order by i.ord;
  end if;
  if p_events then
    insert into {outbox} (process_id, notice, event_id, timestamp, metadata, payload)
      select a_pid[e.ord], 'event', e.id, e.at, e.metadata, e.payload
      from unnest(e_ord, e_id, e_at, e_payload, e_metadata) as e(ord, id, at, payload, metadata)
      where v_lost is null or e.ord <> all(v_lost) order by e.ord, e.id;
  end if;

  -- Removal: nothing below concerns these items.
  if v_doomed is not null then
    v_ids := {erase}(p_lifecycle, array(select a_pid[ord] from unnest(v_doomed) ord));
    return query select ord, 'done', null::bigint, null, null, null::timestamptz, null::bytea, null::bytea, null::jsonb,
      null::int, null::bytea, a_pid[ord], 'gone', null, null::bytea, null::jsonb, null::timestamptz, null,
      null::timestamptz, null::bigint, null::bigint from unnest(v_doomed) ord;
    return query select 0, 'gone', id, null, null, null::timestamptz, null::bytea, null::bytea, null::jsonb,
      null::int, null::bytea, null, null, null, null::bytea, null::jsonb, null::timestamptz, null,
      null::timestamptz, null::bigint, null::bigint from unnest(v_ids) id;
    v_lost := v_lost || v_doomed;
    if array_length(v_lost, 1) = array_length(a_pid, 1) then
      return;
    end if;
  end if;

  if v_more is not null then
    -- Timers are replaced, or fall with their process; so do calls, while repairs fall with its recovery.
    with item as (
      select ord, a_pid[ord] as pid, a_status[ord] as status, a_timer[ord] <> 'keep' as replaces,
        a_corrupted[ord] = a_task[ord] as breaks
      from unnest(v_more) ord)
    , fallen as (
      select s.task_id, s.task_type, i.ord, i.status from item i
      cross join lateral (
        select task_id, task_type from {schedule} where process_id = i.pid and task_type in ('timeout', 'remove')
          and (i.replaces or i.status = 'error')
        union all
        select task_id, task_type from {schedule} where process_id = i.pid and task_type in ('call', 'repair')
          and i.status = 'error' and i.breaks
        union all
        select task_id, task_type from {schedule} where process_id = i.pid and task_type = 'repair'
          and i.status = 'running') s)
    , removed as (
      delete from {schedule} where task_id = any(array(select task_id from fallen)))
    , answered as (
      update {tasks} t set status = 'cancelled',
        finished_time = case when f.task_type in ('call', 'repair') then v_now end,
        response = case when f.task_type in ('call', 'repair')
          then case f.status when 'error' then {process_is_error} else {process_is_running} end end
      from fallen f where t.task_id = f.task_id
      returning t.task_id, t.task_type, t.waiter, f.ord, f.status)
    select array_agg(row(ord, case status when 'error' then 'failed' else 'obsolete' end, task_id, task_type, 'cancelled',
                         null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
                         )::progressor_outcome),
           array_agg(waiter) filter (where waiter <> p_epoch),
           array_agg(task_id) filter (where waiter <> p_epoch)
      into v_next, v_waiters, v_ids from answered where task_type in ('call', 'repair');
    return query select * from unnest(v_next);
    if v_ids is not null then
      perform {announce}(v_waiters, v_ids);
    end if;

    -- The first that waits goes on; with nobody waiting, a blocked timer that has come due.
    with chosen as (
      select ord, first.task_id from unnest(v_more) ord
      cross join lateral (
        select task_id from (
          (select task_id, 1 as rank from {schedule} where process_id = a_pid[ord] and task_type = 'call'
             and a_status[ord] = 'running' order by task_id limit 1)
          union all
          (select task_id, 1 from {schedule} where process_id = a_pid[ord] and task_type = 'notify'
             and a_status[ord] = 'running' and scheduled_time <= v_now order by task_id limit 1)
          union all
          (select task_id, 1 from {schedule} where process_id = a_pid[ord] and task_type = 'repair'
             and a_status[ord] = 'error' order by task_id limit 1)
          union all
          (select task_id, 2 from {schedule} where process_id = a_pid[ord] and task_type in ('timeout', 'remove')
             and a_status[ord] = 'running' and scheduled_time <= v_now limit 1)) waiting
        order by rank, task_id limit 1) first)
    , taken as (
      delete from {schedule} s using chosen c where s.task_id = c.task_id returning c.ord, s.*)
    select array_agg(row(ord, 'next', task_id, task_type, 'running', scheduled_time, args, context, metadata,
                         attempts_count, null, process_id, null, null, null, null, null, null, null, null, null
                         )::progressor_outcome)
      into v_next from taken;
    if v_next is not null then
      update {schedule} set status = 'blocked' where task_id = any(array(
        select s.task_id from unnest(v_next) n
        cross join lateral (select task_id from {schedule} where process_id = n.process_id
          and task_type in ('timeout', 'remove') and status::text = 'waiting' offset 0) s
        where n.task_type in ('call', 'notify', 'repair')));
    end if;
    return query
      with idle as (
        select s.task_id from unnest(v_more) ord
        cross join lateral (select task_id from {schedule} where process_id = a_pid[ord]
          and task_type in ('timeout', 'remove') and status = 'blocked' offset 0) s
        where v_next is null or ord <> all(array(select n.ord from unnest(v_next) n)))
      , unblocked as (
        update {schedule} s set status = 'waiting' from idle i where s.task_id = i.task_id
        returning s.*)
      select null::int, 'timer', task_id, task_type::text, null, scheduled_time, null::bytea, null::bytea, null::jsonb,
        null::int, null::bytea, process_id::text, null, null, null::bytea, null::jsonb, null::timestamptz, null,
        null::timestamptz, null::bigint, null::bigint from unblocked;
  end if;

  -- New timers, and tasks that are tried again. Behind a call they are blocked. One that runs at once gets its task
  -- row when it has run: one write instead of two, for the most frequent kind of step.
  select array_agg(case when i.timer in ('now', 'at') and i.outcome <> 'retry' then nextval({tasks_sequence}) end
                   order by i.ord)
    into v_new from unnest(a_timer, a_outcome) with ordinality as i(timer, outcome, ord);
  if v_next is not null or 'at' = any(a_timer) or 'retry' = any(a_outcome) then
    insert into {tasks} (task_id, process_id, task_type, status, scheduled_time, args,
                         last_retry_interval, attempts_count, context)
      select i.id, i.pid, i.type::task_type, 'waiting', i.due, i.args, 0, 0, i.context
      from unnest(v_new, a_pid, a_timer, a_type, a_at, a_args, a_context) with ordinality
        as i(id, pid, timer, type, due, args, context, ord)
      left join unnest(v_next) n on n.ord = i.ord
      where i.id is not null and (v_lost is null or i.ord <> all(v_lost)) and (i.timer = 'at' or n.ord is not null);
    return query
      with timers as (
        insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, args, metadata,
                                last_retry_interval, attempts_count, context)
          select coalesce(i.id, i.task), i.pid, i.type::task_type,
            case when n.ord is null or i.type = 'notify' then 'waiting' else 'blocked' end::task_status,
            i.due, i.args, case when i.id is null then (select metadata from {running} r where r.process_id = i.pid) end,
            case when i.id is null then i.wait else 0 end, case when i.id is null then i.attempts else 0 end, i.context
          from unnest(v_new, a_pid, a_task, a_outcome, a_timer, a_type, a_at, a_args, a_context, a_attempts, a_interval)
            with ordinality as i(id, pid, task, outcome, timer, type, due, args, context, attempts, wait, ord)
          left join unnest(v_next) n on n.ord = i.ord
          where (v_lost is null or i.ord <> all(v_lost))
            and (i.outcome = 'retry' or i.timer = 'at' or (i.timer = 'now' and n.ord is not null))
          returning task_id, process_id, task_type, status, scheduled_time)
      select null::int, 'timer', task_id, task_type::text, status::text, scheduled_time, null::bytea, null::bytea,
        null::jsonb, null::int, null::bytea, process_id::text, null, null, null::bytea, null::jsonb, null::timestamptz,
        null, null::timestamptz, null::bigint, null::bigint
      from timers;
  end if;

  -- The running rows: in place for what goes on, gone for the others.
  if v_next is not null then
    update {running} r set task_id = n.task_id, task_type = n.task_type::task_type, scheduled_time = n.scheduled_time,
      running_time = v_now, args = n.args, metadata = n.task_metadata, context = n.context, run_token = i.next,
      attempts_count = n.attempts, last_retry_interval = 0
    from unnest(v_next) n join unnest(a_next) with ordinality as i(next, ord) on i.ord = n.ord
    where r.process_id = n.process_id;
    return query select * from unnest(v_next);
  end if;
  return query
    with continued as (
      update {running} r set task_id = i.id, task_type = i.type::task_type, scheduled_time = i.due,
        running_time = v_now, args = i.args, metadata = null, context = i.context, run_token = i.next,
        attempts_count = 0, last_retry_interval = 0
      from unnest(v_new, a_pid, a_timer, a_type, a_at, a_args, a_context, a_next) with ordinality
        as i(id, pid, timer, type, due, args, context, next, ord)
      where r.process_id = i.pid and i.timer = 'now' and (v_lost is null or i.ord <> all(v_lost))
        and (v_next is null or i.ord <> all(array(select ord from unnest(v_next))))
      returning i.ord::int, i.id, i.pid)
    select ord, 'next', id, null, null, null::timestamptz, null::bytea, null::bytea, null::jsonb,
      null::int, null::bytea, pid, null, null, null::bytea, null::jsonb, null::timestamptz, null,
      null::timestamptz, null::bigint, null::bigint from continued;
  return query
    with finished as (
      delete from {running} r using unnest(a_pid, a_token) with ordinality as i(pid, token, ord)
      where r.process_id = i.pid and r.run_token = i.token and (v_lost is null or i.ord <> all(v_lost))
      returning i.ord::int, i.pid)
    select ord, 'done', null::bigint, null, null, null::timestamptz, null::bytea, null::bytea, null::jsonb,
      null::int, null::bytea, pid, null, null, null::bytea, null::jsonb, null::timestamptz, null,
      null::timestamptz, null::bigint, null::bigint from finished;
end $$;

-- Takes due tasks of the schedule into the hands of this node: fate `started`, under a_token. A process that is locked
-- now, or runs something, is passed over: somebody else is at it. `early` rows are not due by the clock of the database.
create or replace function {claim}(
  p_epoch bigint, a_task bigint[], a_pid text[], a_token bigint[]
) returns setof progressor_outcome language plpgsql as $$
declare
  v_now timestamptz := clock_timestamp();
  v_free int[];                -- claims whose processes this transaction has locked
  v_started bigint;
begin
  select array_agg(ord) into v_free from (
    select i.ord from unnest(a_pid) with ordinality as i(pid, ord) join {processes} p on p.process_id = i.pid
    order by p.process_id for update of p skip locked) free;
  with due as (
    select distinct on (s.process_id) a_token[ord] as token, s.*
    from unnest(v_free) ord
    join {schedule} s on s.task_id = a_task[ord]
    where s.status = 'waiting' and s.scheduled_time <= v_now
      and (s.task_type <> 'notify' or (select status from {processes} p where p.process_id = s.process_id) <> 'error')
      and not exists (select from {running} r where r.process_id = s.process_id)
    order by s.process_id, s.task_type in ('timeout', 'remove'), s.task_id)
  , taken as (
    insert into {running} (process_id, task_id, task_type, status, scheduled_time, running_time, args, metadata,
                           last_retry_interval, attempts_count, context, owner, run_token)
      select process_id, task_id, task_type, 'running', scheduled_time, v_now, args, metadata,
        last_retry_interval, attempts_count, context, p_epoch, token
      from due
      on conflict (process_id) do nothing
      returning process_id, task_id)
  , unscheduled as (
    delete from {schedule} s using taken t where s.task_id = t.task_id)
  update {schedule} s set status = 'blocked' where s.task_id = any(array(
    select o.task_id from taken t cross join lateral (
      select b.task_id from {schedule} b where b.process_id = t.process_id and b.task_id <> t.task_id
        and b.status::text = 'waiting' and b.task_type::text in ('timeout', 'remove') offset 0) o));
  return query select * from {started}(p_epoch, a_pid, a_token);  -- also what was taken when this batch was sent first
  get diagnostics v_started = row_count;
  if v_started < cardinality(a_task) then
    return query
      select w.* from unnest(a_task) with ordinality as i(task, ord) join {schedule} s on s.task_id = i.task
      cross join lateral (select (row(i.ord, 'early', s.task_id, null, null, s.scheduled_time, null, null, null, null, null,
        s.process_id, null, null, null, null, null, null, null, null, null)::progressor_outcome).*) w
      where s.status = 'waiting' and s.scheduled_time > v_now;
  end if;
end $$;

-- Takes zombies over: running tasks whose node was declared dead, that nobody has looked after for p_stale, or that this
-- node owns without knowing of them (a_known: the tokens it works on) for p_grace. Tasks of this node that wait for a
-- worker are refreshed, so that nobody takes them. Each gets a token of a_token; there are at most as many. When this node's
-- own lease has expired, the database has stalled or its clock has been set: then how old something looks means nothing.
create or replace function {takeover}(
  p_epoch bigint, p_stale interval, p_grace interval, a_known bigint[], a_token bigint[]
) returns setof progressor_outcome language plpgsql as $$
declare
  v_now timestamptz := clock_timestamp();
  v_ages boolean := exists (select from progressor_nodes where epoch = p_epoch and expires_at > v_now);
  v_pids text[];
begin
  update {running} set running_time = v_now where process_id = any(array(
    select process_id from {running}
    where owner = p_epoch and run_token = any(a_known) and running_time < v_now - p_stale / 2
    for update skip locked));
  with zombies as (
    select r.process_id, r.task_id from {running} r
    join {processes} p on p.process_id = r.process_id
    where (r.owner is not null and not exists (select from progressor_nodes n where n.epoch = r.owner))
      or (v_ages and r.running_time < v_now - p_stale)
      or (v_ages and r.owner = p_epoch and r.running_time < v_now - p_grace and r.run_token <> all(a_known))
    limit cardinality(a_token)
    for update of p, r skip locked)
  , numbered as (
    select *, row_number() over () as ord from zombies)
  , taken as (
    update {running} r set owner = p_epoch, run_token = a_token[z.ord], running_time = v_now,
      attempts_count = r.attempts_count + 1
    from numbered z where r.process_id = z.process_id and r.task_id = z.task_id
    returning z.ord, r.process_id)
  select array_agg(process_id order by ord) into v_pids from taken;
  return query select * from {started}(p_epoch, v_pids, a_token);
end $$;

-- Hands tasks that did not begin back to the schedule.
create or replace function {release}(p_epoch bigint, a_pid text[], a_token bigint[]) returns void language plpgsql as $$
declare
  v_pids text[];
begin
  perform {lock}(a_pid);
  with released as (
    delete from {running} r using unnest(a_pid, a_token) as i(pid, token)
    where r.process_id = i.pid and r.owner = p_epoch and r.run_token = i.token returning r.*)
  , scheduled as (
    insert into {schedule} (task_id, process_id, task_type, status, scheduled_time, args, metadata,
                            last_retry_interval, attempts_count, context)
      select task_id, process_id, task_type, 'waiting', scheduled_time, args, metadata,
        last_retry_interval, attempts_count, context
      from released)
  select array_agg(process_id) into v_pids from released;
  insert into {tasks} as t (task_id, process_id, task_type, status, scheduled_time, args, metadata,
                            last_retry_interval, attempts_count, context)
    select task_id, process_id, task_type, status, scheduled_time, args, metadata,
      last_retry_interval, attempts_count, context
    from {schedule} where process_id = any(v_pids) and status = 'waiting'
    on conflict (task_id) do update set status = excluded.status;
end $$;

-- The side of the publisher. It holds the advisory lock of the outbox, so there is one. Dead letters are changed under a
-- lock on their table: who retries or drops one must know all that waits behind it.

-- Ends messages that were read: p_sent were acknowledged, p_refused never can be (for p_refusals), p_waiting belong to
-- processes with a dead letter. p_again: they were read from {dead_letters} already.
create or replace function {settle}(
  p_again boolean, p_sent bigint[], p_refused bigint[], p_refusals text[], p_waiting bigint[]
) returns void language plpgsql as $$
begin
  if not p_again then
    delete from {outbox} where message_id = any(p_sent);
    if cardinality(p_refused) + cardinality(p_waiting) = 0 then
      return;
    end if;
  end if;
  lock table {dead_letters} in share row exclusive mode;
  delete from {dead_letters} where message_id = any(p_sent);
  with parked as (
    delete from {outbox} where message_id = any(p_refused || p_waiting)
    returning message_id, process_id, notice, written_at, event_id, timestamp, metadata, payload, reason)
  insert into {dead_letters} (message_id, process_id, notice, written_at, event_id, timestamp, metadata, payload, reason)
    select * from parked;
  update {dead_letters} d set refusal = r.refusal, parked_at = clock_timestamp()
    from unnest(p_refused, p_refusals) as r(message_id, refusal) where d.message_id = r.message_id;
  perform {let_go}(process_id, min(message_id)) from {dead_letters}
    where message_id = any(p_refused || p_waiting) group by process_id;
end $$;

-- Sees to it that those dead letters of a process, from a message on, are ready that wait behind no refused one.
create or replace function {let_go}(p_process text, p_from bigint) returns void language plpgsql as $$
declare
  v_first bigint;
begin
  select min(message_id) into v_first from {dead_letters} where process_id = p_process and refusal is not null;
  update {dead_letters} set ready = not ready
    where process_id = p_process and message_id >= p_from and refusal is null
      and ready <> (v_first is null or message_id < v_first);
end $$;

-- For operators: sends a dead letter again, before those that wait behind it. False when it is none.
create or replace function {retry_dead_letter}(p_message bigint) returns boolean language plpgsql as $$
declare
  v_process text;
begin
  lock table {dead_letters} in share row exclusive mode;
  update {dead_letters} set refusal = null where message_id = p_message and refusal is not null
    returning process_id into v_process;
  perform {let_go}(v_process, p_message);
  return v_process is not null;
end $$;

-- For operators: a dead letter is never sent, and those that wait behind it are. False when it is none.
create or replace function {drop_dead_letter}(p_message bigint) returns boolean language plpgsql as $$
declare
  v_process text;
begin
  lock table {dead_letters} in share row exclusive mode;
  delete from {dead_letters} where message_id = p_message and refusal is not null returning process_id into v_process;
  perform {let_go}(v_process, p_message);
  return v_process is not null;
end $$;
