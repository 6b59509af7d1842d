"""What must be true of a namespace's tables, whatever happened before (docs/design.md).

    invariants.check(connection, "a/b")                   at any instant
    invariants.settle(connection, "a/b")                  when nothing runs and nothing is due any more; waits for it

Each query finds the rows that break one rule. All look at one snapshot, so nodes may be at work meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import TupleRow

from progressor.storage import sql
from tests.eventually import eventually

Connection: TypeAlias = psycopg.Connection[TupleRow]

ALWAYS: Mapping[str, str] = {
    "event ids are 1..n": """
        select process_id, count(*), min(event_id), max(event_id) from {events} group by process_id
        having min(event_id) <> 1 or max(event_id) <> count(*)""",
    "events belong to a process": """
        select process_id, event_id from {events} where process_id not in (select process_id from {processes})""",
    "events belong to a task that succeeded": """
        select e.process_id, e.event_id, e.task_id, t.status from {events} e left join {tasks} t using (task_id)
        where t.task_id is null or t.status <> 'finished' or t.process_id <> e.process_id""",
    "a key has one task": """
        select idempotency_key, count(*) from {tasks} where idempotency_key is not null
        group by idempotency_key having count(*) > 1""",
    "an open task is scheduled or runs, once": """
        select t.process_id, t.task_id, t.task_type, t.status, s.task_id, r.task_id
        from {tasks} t left join {schedule} s using (task_id)
        left join {running} r on r.process_id = t.process_id and r.task_id = t.task_id
        where (t.status in ('waiting', 'running', 'blocked')) <> (num_nonnulls(s.task_id, r.task_id) = 1)""",
    "what is scheduled or runs belongs to a process": """
        select process_id, task_id from
          (select process_id, task_id from {schedule} union all select process_id, task_id from {running}) work
        where process_id not in (select process_id from {processes})""",
    "what is scheduled or runs is a task": """
        select process_id, task_id, task_type from {schedule} where task_id not in (select task_id from {tasks})
        union all
        select process_id, task_id, task_type from {running} where task_id not in (select task_id from {tasks})
          and task_type not in ('timeout', 'remove')  -- a timer that runs at once gets its row when it has run""",
    "a process has one timer": """
        select process_id, count(*) from
          (select process_id, task_type from {schedule} union all select process_id, task_type from {running}) work
        where task_type in ('timeout', 'remove') group by process_id having count(*) > 1""",
    "a process in error waits for nothing but repair": """
        select p.process_id, s.task_id, s.task_type from {processes} p join {schedule} s using (process_id)
        where p.status = 'error' and s.task_type not in ('repair', 'notify')""",
    "a process in error says why": """
        select process_id from {processes} where status = 'error' and (detail is null or corrupted_by is null)""",
    "a process is in init while its init is open": """
        select p.process_id, p.status from {processes} p where p.status = 'init' and not exists (
          select from {tasks} t where t.process_id = p.process_id and t.task_type = 'init'
            and t.status in ('waiting', 'running'))""",
    "an event is told once": """
        select process_id, event_id, count(*) from (
          select process_id, event_id, timestamp from {outbox} where notice = 'event' union all
          select process_id, event_id, timestamp from {dead_letters} where notice = 'event') messages
        group by process_id, event_id, timestamp having count(*) > 1""",
    "what waits to be sent waits for a dead letter": """
        select process_id, message_id from {dead_letters} d where refusal is null and not ready and not exists (
          select from {dead_letters} b
          where b.process_id = d.process_id and b.refusal is not null and b.message_id < d.message_id)""",
    "no timer runs early": """
        select process_id, task_id, scheduled_time, running_time from {tasks}
        where task_type in ('timeout', 'remove') and status = 'finished' and running_time < scheduled_time""",
    "calls run in the order in which they were accepted": """
        select process_id, task_id, event_id from (
          select e.process_id, e.task_id, e.event_id, max(e.task_id) over (
            partition by e.process_id order by e.event_id rows between unbounded preceding and 1 preceding) as before
          from {events} e join {tasks} t using (task_id) where t.task_type = 'call') calls
        where before > task_id""",
}

QUIESCENT: Mapping[str, str] = {
    "nothing runs": "select process_id, task_id, task_type, owner from {running}",
    "nothing waits that is due now or soon": """
        select process_id, task_id, task_type from {schedule}
        where status = 'waiting' and scheduled_time < clock_timestamp() + interval '1 second'""",
    "no timer is blocked by nothing": "select process_id, task_id from {schedule} where status = 'blocked'",
    "no process is in init": "select process_id from {processes} where status = 'init'",
}

OWNED = """
    select process_id, task_id, owner from {running}
    where owner is not null and owner not in (select epoch from progressor_nodes)"""

ONE_EVENT_A_TASK = """
    select t.process_id, t.task_id, t.task_type, count(e.event_id) from {tasks} t
    left join {events} e on e.process_id = t.process_id and e.task_id = t.task_id
    where t.status = 'finished' and t.metadata ->> 'kind' is distinct from 'simple_repair'
      and t.process_id in (select process_id from {processes}) group by t.task_id
    having count(e.event_id) <> 1"""


def check(
    connection: Connection, ns: str, *, quiescent: bool = False, owned: bool = False, one_event_a_task: bool = False
) -> None:
    """AssertionError, naming each broken rule with the rows that break it.

    `owned`: no running row of a dead node is left. `one_event_a_task`: the processor gives one event in each step.
    """
    rules = dict(ALWAYS)
    if quiescent:
        rules |= QUIESCENT
    if owned:
        rules["what runs has a live owner"] = OWNED
    if one_event_a_task:
        rules["a step that succeeded left its one event"] = ONE_EVENT_A_TASK
    broken = violations(connection, ns, rules)
    assert not broken, "\n".join(f"{ns}: not so: {rule}: {found}" for rule, found in broken.items())


def settle(connection: Connection, ns: str, timeout: float = 10, *, one_event_a_task: bool = False) -> None:
    """Waits until nothing runs and nothing is due, then checks everything."""
    eventually(lambda: is_quiescent(connection, ns), timeout)
    check(connection, ns, owned=True, one_event_a_task=one_event_a_task)


def violations(connection: Connection, ns: str, rules: Mapping[str, str]) -> Mapping[str, list[Any]]:
    """The rows that break a rule, by rule, as one snapshot shows them."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        found = {rule: connection.execute(sql.fill(query, ns)).fetchall() for rule, query in rules.items()}
    return {rule: rows for rule, rows in found.items() if rows}


def is_quiescent(connection: Connection, ns: str) -> bool:
    """Whether nothing runs and nothing is due, or will be in a second. Later timers do not count."""
    return not violations(connection, ns, QUIESCENT)
