"""The native service of a real node, called by the generated client over the transports of Apache's library."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from thrift.Thrift import TApplicationException

from progressor import now
from progressor.rpc import codec
from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.native import ttypes as t
from progressor.rpc.native_types import write_instant
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.frames import frame, read_frame
from tests.acceptance.nodes import FREE_PORT, NS, Gates, NodeProcess, as_toml, config, native, started
from tests.conftest import fresh_database
from tests.eventually import eventually

TALK = "native/talk"
TRANSPORTS = ("http", "thrift")
_NUMBERS = count()


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    return Gates(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def node(postgres_server: EmbeddedPostgres, gates: Gates) -> Iterator[NodeProcess]:
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, gates.directory)
        talk = {"processor": {"client": "tests.acceptance.processors:talk"}, "worker_pool_size": 5}
        settings["progressor"]["namespaces"][TALK] = talk
        settings["listen"]["thrift"] = FREE_PORT
        file = gates.directory / "sys.toml"
        file.write_text(as_toml(settings))
        with started(gates.directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node
            assert "Traceback" not in node.errors
            assert "ERROR" not in node.errors


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(node: NodeProcess, transport: str) -> Iterator[Native.Client]:
    with native(node, transport) as client:
        yield client


@pytest.fixture
def name() -> str:
    return f"p{next(_NUMBERS)}"


def say(**what: Any) -> bytes:
    return json.dumps(what).encode()


def ask(id: str, ns: str = TALK, **given: Any) -> Any:
    return t.Request(ns, id, **given)


def test_a_process_from_its_init_to_its_removal(client: Native.Client, name: str) -> None:
    begun = client.Init(ask(name, arguments=say(events=2, aux="state")))
    assert (begun.response, begun.last_event_id) == (None, 2)
    called = client.Call(ask(name, arguments=b"hello", context=b"from", idempotency_key=f"key of {name}"))
    assert (called.response, called.last_event_id) == (b"hello", 3)
    assert called.task_id > begun.task_id
    found = client.Get(t.GetRequest(TALK, name))
    assert (found.process_id, found.status, found.previous_status) == (name, t.ProcessStatus.running, 1)
    assert (found.aux_state, found.last_event_id, found.range) == (b"state", 3, t.Range())
    assert [(e.event_id, e.payload, e.metadata) for e in found.history] == [
        (1, b"event", '{"format_version":1}'),
        (2, b"event", '{"format_version":1}'),
        (3, b"hello", "{}"),
    ]
    assert {e.task_id for e in found.history} == {begun.task_id, called.task_id}
    minute = 60 * 1_000_000
    assert all(abs(write_instant(now()) - e.timestamp) < minute for e in found.history)
    client.Remove(ask(name))
    with pytest.raises(t.ProcessNotFound):
        client.Get(t.GetRequest(TALK, name))


def test_ranges(client: Native.Client, name: str) -> None:
    client.Init(ask(name, arguments=say(events=4)))
    for range_, ids in (
        (t.Range(offset=1, limit=2), [2, 3]),
        (t.Range(offset=4, limit=2, direction=t.Direction.backward), [3, 2]),
        (t.Range(direction=t.Direction.backward), [4, 3, 2, 1]),
        (t.Range(limit=0), []),
    ):
        found = client.Get(t.GetRequest(TALK, name, range_))
        assert [e.event_id for e in found.history] == ids
        assert found.range == range_
        assert found.last_event_id == 4
    step = t.Range(offset=1, limit=2)
    assert client.Call(ask(name, arguments=say(echo=True), range=step)).response == b"2,3"


def test_a_read_of_what_a_call_has_done(client: Native.Client, name: str) -> None:
    answer = client.Init(ask(name, arguments=b"x"))
    assert client.Get(t.GetRequest(TALK, name, at_least_event_id=answer.last_event_id)).last_event_id == 1
    assert client.Get(t.GetRequest(TALK, name, cache=False)).last_event_id == 1


def test_the_context_reaches_the_processor(client: Native.Client, name: str) -> None:
    assert client.Init(ask(name, arguments=say(context=True), context=b"\0from\xff")).response == b"\0from\xff"


def test_one_key_has_one_effect(client: Native.Client, name: str) -> None:
    client.Init(ask(name, arguments=b"begin"))
    answers = [client.Call(ask(name, arguments=b"once", idempotency_key=f"key of {name}")) for _ in range(2)]
    assert answers[0].task_id == answers[1].task_id
    assert len(client.Get(t.GetRequest(TALK, name)).history) == 2
    with pytest.raises(t.IdempotencyConflict) as caught:
        client.Call(ask(name, arguments=b"other", idempotency_key=f"key of {name}"))
    assert caught.value.message.startswith("idempotency key")


def test_failure_and_repair(client: Native.Client, name: str) -> None:
    client.Init(ask(name, arguments=b"x"))
    verbs: list[Any] = [client.Repair, client.SimpleRepair]
    for repair in verbs:
        with pytest.raises(t.ProcessRunning):
            repair(ask(name))
    with pytest.raises(t.ProcessorError) as failed:
        client.Call(ask(name, arguments=say(fail="because")))
    assert failed.value.reason == "because"
    broken = client.Get(t.GetRequest(TALK, name))
    assert (broken.status, broken.detail) == (t.ProcessStatus.error, "because")
    verbs = [client.Call, client.Notify]
    for verb in verbs:
        with pytest.raises(t.ProcessInError) as refused:
            verb(ask(name))
        assert refused.value.message == "process is error"
    mended: Any = client.Repair(ask(name, arguments=b"mended"))
    assert mended.response == b"mended"
    with pytest.raises(t.ProcessorError):
        client.Call(ask(name, arguments=say(fail="again")))
    mended = client.SimpleRepair(ask(name))
    assert mended.response is None
    assert client.Get(t.GetRequest(TALK, name)).status == t.ProcessStatus.running


def test_a_notification(client: Native.Client, name: str) -> None:
    client.Init(ask(name, arguments=b"x"))
    told = client.Notify(ask(name, arguments=b"news"))
    history = eventually(lambda: client.Get(t.GetRequest(TALK, name)).history[1:])
    assert [(e.payload, e.task_id) for e in history] == [(b"news", told.task_id)]


def test_put(client: Native.Client, name: str) -> None:
    at = write_instant(now() + timedelta(days=1))
    then = write_instant(now() - timedelta(days=1))
    history = [t.NewEvent(payload=b"one", timestamp=then, metadata='{"a": [1, null]}'), t.NewEvent(payload=b"two")]
    new = t.NewProcess(aux_state=b"s", metadata='{"m": {"é": 1}}', history=history, created_at=then)
    client.Put(t.PutRequest(TALK, name, new, t.SetTimer(at), b"context"))
    found = client.Get(t.GetRequest(TALK, name))
    assert (found.status, found.aux_state, json.loads(found.metadata)) == (2, b"s", {"m": {"é": 1}})
    assert [(e.event_id, e.payload, json.loads(e.metadata)) for e in found.history] == [
        (1, b"one", {"a": [1, None]}),
        (2, b"two", {}),
    ]
    assert (found.history[0].timestamp, found.created_at) == (then, then)
    *_, timer = client.Trace(TALK, name)
    assert (timer.task_type, timer.status, timer.scheduled, timer.context) == (
        t.TaskType.timeout,
        t.TaskStatus.waiting,
        at,
        b"context",
    )
    with pytest.raises(t.ProcessAlreadyExists):
        client.Put(t.PutRequest(TALK, name, t.NewProcess()))


def test_trace(client: Native.Client, name: str) -> None:
    client.Init(ask(name, arguments=b"args", context=b"context", idempotency_key=f"key of {name}"))
    with pytest.raises(t.ProcessorError):
        client.Call(ask(name, arguments=say(fail="because")))
    began, failed = client.Trace(TALK, name)
    assert (began.task_type, began.status) == (t.TaskType.init, t.TaskStatus.finished)
    assert (began.arguments, began.context, began.idempotency_key) == (b"args", b"context", f"key of {name}")
    assert (began.response, began.error, began.retry_interval, began.retry_attempts) == (b"args", None, 0.0, 0)
    assert began.scheduled <= began.running <= began.finished
    assert [e.payload for e in began.events] == [b"args"]
    assert (failed.task_type, failed.status, failed.error) == (t.TaskType.call, t.TaskStatus.error, "because")


def test_list(client: Native.Client, name: str) -> None:
    for n in range(3):
        new = t.NewProcess(metadata=json.dumps({"of": name, "n": n}))
        client.Put(t.PutRequest(TALK, f"{name}-{n}", new))
    first = client.List(t.ListRequest(TALK, id_prefix=f"{name}-", limit=2))
    assert [p.process_id for p in first.items] == [f"{name}-0", f"{name}-1"]
    second = client.List(t.ListRequest(TALK, id_prefix=f"{name}-", limit=2, cursor=first.cursor))
    assert ([p.process_id for p in second.items], second.cursor) == ([f"{name}-2"], None)
    by = t.ListRequest(TALK, status=t.ProcessStatus.running, metadata=json.dumps({"of": name, "n": 1}))
    assert [p.process_id for p in client.List(by).items] == [f"{name}-1"]
    soon = write_instant(now() + timedelta(minutes=1))
    assert client.List(t.ListRequest(TALK, id_prefix=name, created_from=soon)).items == []
    assert len(client.List(t.ListRequest(TALK, id_prefix=name, created_to=soon, status_changed_to=soon)).items) == 3


def test_health(client: Native.Client) -> None:
    report = client.HealthCheck([TALK])
    assert report.health == t.Health.passing
    assert json.loads(report.details)[TALK]["problems"] == []


def test_authentication_where_there_is_no_secret(client: Native.Client) -> None:
    client.Authenticate("whatever")


GHOST, NOWHERE = ask("ghost"), ask("ghost", "no/where")
THROWN: Mapping[str, tuple[type[Exception], Callable[[Native.Client], object]]] = {
    "init twice": (t.ProcessAlreadyExists, lambda c: [c.Init(ask("twice", arguments=b"x")) for _ in range(2)]),
    "init failing": (t.ProcessorError, lambda c: c.Init(ask(f"failing {next(_NUMBERS)}", arguments=say(fail="no")))),
    **{
        f"{name} nowhere": (t.NamespaceNotFound, lambda c, name=name: getattr(c, name)(NOWHERE))  # type: ignore[misc]
        for name in ("Init", "Call", "Notify", "Repair", "SimpleRepair", "Remove")
    },
    **{
        name: (t.ProcessNotFound, lambda c, name=name: getattr(c, name)(GHOST))  # type: ignore[misc]
        for name in ("Call", "Notify", "Repair", "SimpleRepair", "Remove")
    },
    "Get nowhere": (t.NamespaceNotFound, lambda c: c.Get(t.GetRequest("no/where", "ghost"))),
    "Get": (t.ProcessNotFound, lambda c: c.Get(t.GetRequest(TALK, "ghost"))),
    "Put nowhere": (t.NamespaceNotFound, lambda c: c.Put(t.PutRequest("no/where", "ghost", t.NewProcess()))),
    "Trace nowhere": (t.NamespaceNotFound, lambda c: c.Trace("no/where", "ghost")),
    "Trace": (t.ProcessNotFound, lambda c: c.Trace(TALK, "ghost")),
    "List nowhere": (t.NamespaceNotFound, lambda c: c.List(t.ListRequest("no/where"))),
    "HealthCheck nowhere": (t.NamespaceNotFound, lambda c: c.HealthCheck(["no/where"])),
}


@pytest.mark.parametrize("case", THROWN)
def test_declared_exceptions(client: Native.Client, case: str) -> None:
    thrown, ask_it = THROWN[case]
    with pytest.raises(thrown):
        ask_it(client)


BEYOND = 2**62
INVALID: Mapping[str, tuple[str, Callable[[Native.Client], object]]] = {
    "no id": ("id", lambda c: c.Call(ask(""))),
    "long id": ("id", lambda c: c.Init(ask("x" * 257))),
    "timeout": ("timeout", lambda c: c.Call(ask("x", timeout=-1.0))),
    "key": ("idempotency_key", lambda c: c.Call(ask("x", idempotency_key=""))),
    "offset": ("range.offset", lambda c: c.Get(t.GetRequest(TALK, "x", t.Range(offset=-1)))),
    "limit": ("range.limit", lambda c: c.Call(ask("x", range=t.Range(limit=-1)))),
    "direction": ("range.direction", lambda c: c.Call(ask("x", range=t.Range(direction=9)))),
    "event": ("at_least_event_id", lambda c: c.Get(t.GetRequest(TALK, "x", at_least_event_id=-1))),
    "status": ("status", lambda c: c.List(t.ListRequest(TALK, status=9))),
    "metadata": ("metadata", lambda c: c.List(t.ListRequest(TALK, metadata="{"))),
    "a list": ("metadata", lambda c: c.List(t.ListRequest(TALK, metadata="[]"))),
    "deep": ("metadata", lambda c: c.List(t.ListRequest(TALK, metadata="[" * 100_000))),
    "NaN": ("process.metadata", lambda c: c.Put(t.PutRequest(TALK, "x", t.NewProcess(metadata='{"a": NaN}')))),
    "page": ("limit", lambda c: c.List(t.ListRequest(TALK, limit=0))),
    "instant": ("created_to", lambda c: c.List(t.ListRequest(TALK, created_to=BEYOND))),
    "init": ("process.status", lambda c: c.Put(t.PutRequest(TALK, "x", t.NewProcess(status=1)))),
    "number": (
        "process.history[0].event_id",
        lambda c: c.Put(t.PutRequest(TALK, "x", t.NewProcess(history=[t.NewEvent(2, payload=b"")]))),
    ),
    "event's metadata": (
        "process.history[1].metadata",
        lambda c: c.Put(
            t.PutRequest(
                TALK, "x", t.NewProcess(history=[t.NewEvent(payload=b""), t.NewEvent(payload=b"", metadata="5")])
            )
        ),
    ),
    "timer": ("timer.at", lambda c: c.Put(t.PutRequest(TALK, "x", t.NewProcess(), t.SetTimer(BEYOND)))),
    "namespaces": ("ns", lambda c: c.HealthCheck([""])),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_request_names_the_field(client: Native.Client, case: str) -> None:
    field, ask_it = INVALID[case]
    with pytest.raises(t.InvalidRequest) as caught:
        ask_it(client)
    assert caught.value.field == field
    assert caught.value.problem


def test_no_answer_in_time(client: Native.Client, gates: Gates, name: str) -> None:
    client.Init(ask(name, NS))
    gates.hold(name)
    with pytest.raises(t.RequestTimeout) as caught:
        client.Call(ask(name, NS, timeout=0.3))
    assert "outcome is unknown" in caught.value.message
    gates.await_step(name)
    gates.open(name)
    assert eventually(lambda: client.Get(t.GetRequest(NS, name)).last_event_id == 2)


def test_a_process_in_its_init(
    node: NodeProcess, transport: str, client: Native.Client, gates: Gates, name: str
) -> None:
    gates.hold(name)
    with ThreadPoolExecutor(1) as other, native(node, transport) as second:
        beginning = other.submit(second.Init, ask(name, NS))
        gates.await_step(name)
        with pytest.raises(t.ProcessInInit):
            client.Repair(ask(name, NS))
        gates.open(name)
        assert beginning.result().last_event_id == 1


def test_a_removal_with_arguments_and_a_range_goes_ahead_too(
    node: NodeProcess, transport: str, client: Native.Client, gates: Gates, name: str
) -> None:
    client.Init(ask(name, NS))
    gates.hold(name)

    def later(threads: ThreadPoolExecutor, verb: str, **given: Any) -> Future[Any]:
        def asked() -> Any:
            with native(node, transport) as other:
                try:
                    return getattr(other, verb)(ask(name, NS, **given))
                except t.ProcessNotFound:
                    return "not found"

        return threads.submit(asked)

    with ThreadPoolExecutor(3) as threads:
        running = later(threads, "Call")
        gates.await_step(name)
        waiting = later(threads, "Call")
        eventually(lambda: len(client.Trace(NS, name)) == 3)
        removal = later(threads, "Remove", arguments=b"unused", range=t.Range(limit=1))
        eventually(lambda: len(client.Trace(NS, name)) == 4)
        gates.open(name)
        assert running.result().last_event_id == 2
        assert removal.result().response is None
        assert waiting.result() == "not found"


def test_many_callers_wait_at_once(node: NodeProcess, transport: str) -> None:
    """More than there are workers, and no thread for each."""

    def one(_: int) -> object:
        with native(node, transport) as client:
            name = f"many {next(_NUMBERS)}"
            client.Init(ask(name, arguments=b"x"))
            return client.Call(ask(name, arguments=b"y")).response

    with ThreadPoolExecutor(100) as callers:
        assert list(callers.map(one, range(300))) == [b"y"] * 300


# What is no call


def exchange(node: NodeProcess, transport: str, message: bytes) -> bytes:
    """The bare reply to a bare message; nothing when the node has none."""
    if transport == "http":
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/progressor", message, {"content-type": "application/x-thrift"})
        answer = connection.getresponse()
        reply = answer.read()
        connection.close()
        return reply
    host, port = node.thrift_url.removeprefix("thrift://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as plain:
        plain.sendall(frame(message))
        try:
            return read_frame(plain)
        except (EOFError, ConnectionResetError):
            return b""


def call(name: bytes, body: bytes = b"\0", kind: int = 1) -> bytes:
    return b"\x80\x01\0" + bytes([kind]) + len(name).to_bytes(4, "big") + name + b"\0\0\0\x07" + body


TRUNCATED = codec.encode_message("Call", codec.CALL, 7, Native.Call_args(ask("x")))[:-3]
NO_CALL: Mapping[str, tuple[bytes, int]] = {
    "unknown": (call(b"Nothing"), TApplicationException.UNKNOWN_METHOD),
    "private": (call(b"__init__"), TApplicationException.UNKNOWN_METHOD),
    "truncated": (TRUNCATED, TApplicationException.PROTOCOL_ERROR),
    "no argument": (call(b"Call"), TApplicationException.PROTOCOL_ERROR),
    "no field": (call(b"Call", b"\x0c\0\1\0\0"), TApplicationException.PROTOCOL_ERROR),
    "trailing": (call(b"HealthCheck", b"\x0f\0\1\x0b\0\0\0\0\0xx"), TApplicationException.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", NO_CALL)
def test_what_is_no_call_of_this_service(node: NodeProcess, transport: str, case: str) -> None:
    message, kind = NO_CALL[case]
    name, reply, seqid, body = codec.message_head(exchange(node, transport, message))
    assert (reply, seqid) == (codec.EXCEPTION, 7)
    assert message[8 : 8 + len(name)] == name.encode()
    assert codec.decode(TApplicationException, body).type == kind


@pytest.mark.parametrize("message", [b"\1", b"garbage", call(b"HealthCheck", kind=2), call(b"HealthCheck", kind=4)])
def test_what_is_no_call_at_all_gets_no_reply(node: NodeProcess, transport: str, message: bytes) -> None:
    assert exchange(node, transport, message) == b""


def test_heads_of_http(node: NodeProcess) -> None:
    def post(method: str = "POST", **headers: str) -> int:
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, "/v1/progressor", b"", {"content-type": "application/x-thrift", **given})
        status = connection.getresponse().status
        connection.close()
        return status

    assert post("GET") == 405
    assert post(content_type="text/plain") == 415
    assert post(content_length="2147483648") == 413
    assert post() == 400


def test_the_metrics_know_methods_and_outcomes(node: NodeProcess, client: Native.Client) -> None:
    with pytest.raises(t.ProcessNotFound):
        client.Trace(TALK, "ghost")
    sample = 'progressor_request_duration_ms_count{method="Trace",outcome="ProcessNotFound",service="Progressor"}'
    assert sample in node.get("/metrics").body
