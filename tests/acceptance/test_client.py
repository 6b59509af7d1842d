"""`progressor.Client` at a real node: the verbs and errors of the process, whatever the network does meanwhile."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import progressor
from progressor import (
    CannotConnect,
    Client,
    ConfigError,
    Event,
    Health,
    IdempotencyConflict,
    InvalidRequest,
    NamespaceNotFound,
    Process,
    ProcessAlreadyExists,
    ProcessInError,
    ProcessInInit,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    Range,
    RequestTimeout,
    SetTimer,
    StorageUnavailable,
    UnexpectedAnswer,
    now,
)
from progressor.rpc import codec
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import FREE_PORT, NS, Gates, NodeProcess, as_toml, config, started
from tests.acceptance.relay import Loss, Relay, relaying
from tests.acceptance.slow import dripping
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

TALK = "client/talk"
TRANSPORTS = ("thrift", "http")
_NUMBERS = count()


def settings(database: Database, directory: Path, drain_timeout: float = 30, **listen: Any) -> Path:
    given = config(database.conninfo, directory, node={"drain_timeout": drain_timeout})
    talk = {"processor": {"client": "tests.acceptance.processors:talk"}, "worker_pool_size": 5}
    given["progressor"]["namespaces"][TALK] = talk
    given["listen"] |= {"thrift": FREE_PORT, **listen}
    file = directory / "sys.toml"
    file.write_text(as_toml(given))
    return file


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    return Gates(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def node(postgres_server: EmbeddedPostgres, gates: Gates) -> Iterator[NodeProcess]:
    with fresh_database(postgres_server) as database:
        file = settings(database, gates.directory)
        with started(gates.directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node
            assert "Traceback" not in node.errors
            assert "ERROR" not in node.errors


@pytest.fixture(params=TRANSPORTS)
def client(node: NodeProcess, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(node.thrift_url if request.param == "thrift" else node.url) as client:
        yield client


@pytest.fixture
def relay(node: NodeProcess) -> Iterator[Relay]:
    with relaying(node.thrift_url) as relay:
        yield relay


@pytest.fixture
def name() -> str:
    return f"p{next(_NUMBERS)}"


def say(**what: Any) -> bytes:
    return json.dumps(what).encode()


# The verbs


def test_a_process_from_its_init_to_its_removal(client: Client, name: str) -> None:
    assert client.init(ns=TALK, id=name, args=say(events=2, aux="state")) is None
    assert client.call(ns=TALK, id=name, args=b"hello", context=b"from") == b"hello"
    answered = client.execute("call", ns=TALK, id=name, args=b"again", idempotency_key=f"key of {name}")
    assert (answered.response, answered.last_event_id) == (b"again", 4)
    found = client.get(ns=TALK, id=name, at_least_event_id=4)
    assert (found.process_id, found.status, found.aux_state, found.last_event_id) == (name, "running", b"state", 4)
    assert [event.payload for event in found.history] == [b"event", b"event", b"hello", b"again"]
    assert [event.metadata for event in found.history] == [{"format_version": 1}] * 2 + [{}] * 2
    assert all(e.timestamp is not None and now() - e.timestamp < timedelta(minutes=1) for e in found.history)
    backward = client.get(ns=TALK, id=name, range=Range(limit=1, direction="backward"), cache=False, timeout=5)
    assert [event.event_id for event in backward.history] == [4]
    assert backward.range == Range(None, 1, "backward")
    task = client.notify(ns=TALK, id=name, args=b"news")
    eventually(lambda: client.get(ns=TALK, id=name).last_event_id == 5)
    assert client.get(ns=TALK, id=name).history[-1].task_id == task
    client.remove(ns=TALK, id=name)
    with pytest.raises(ProcessNotFound):
        client.get(ns=TALK, id=name)


def test_what_is_put_is_what_is_got(client: Client, name: str) -> None:
    then = now() - timedelta(days=1)
    history = [Event(b"one", {"a": [1, None, "é"]}, timestamp=then), Event(b"two")]
    given = Process(name, "error", "broken", b"s", {"m": {"k": 1.5}}, history, created_at=then)
    client.put(ns=TALK, id=name, process=given, action=SetTimer(now() + timedelta(days=1)), context=b"c")
    found = client.get(ns=TALK, id=name)
    assert (found.status, found.detail, found.aux_state, found.metadata) == ("error", "broken", b"s", {"m": {"k": 1.5}})
    assert [(e.payload, e.metadata) for e in found.history] == [(b"one", {"a": [1, None, "é"]}), (b"two", {})]
    assert (found.created_at, found.history[0].timestamp) == (then, then)
    with pytest.raises(ProcessAlreadyExists):
        client.put(ns=TALK, id=name, process=given)
    timer = client.trace(ns=TALK, id=name)[-1]
    assert (timer.task_type, timer.status, timer.context) == ("timeout", "waiting", b"c")


def test_trace_list_and_health(client: Client, name: str) -> None:
    client.init(ns=TALK, id=name, args=b"x")
    with pytest.raises(ProcessorError):
        client.call(ns=TALK, id=name, args=say(fail="because"))
    units = client.trace(ns=TALK, id=name)
    assert [(unit.task_type, unit.status, unit.error) for unit in units] == [
        ("init", "finished", None),
        ("call", "error", "because"),
    ]
    page = client.list(ns=TALK, id_prefix=name, status="error", created_to=now() + timedelta(hours=1), limit=1)
    assert [process.process_id for process in page.items] == [name]
    health, details = client.health_check([TALK, NS])
    assert (health, set(details)) == (Health.PASSING, {TALK, NS})


def test_the_verbs_as_futures(client: Client, name: str) -> None:
    client.future.init(ns=TALK, id=name, args=b"x").result()
    calls = [client.future.call(ns=TALK, id=name, args=b"call %d" % n) for n in range(100)]
    assert [call.result() for call in calls] == [b"call %d" % n for n in range(100)]
    assert client.future.get(ns=TALK, id=name).result().last_event_id == 101
    assert len(client.future.list(ns=TALK, id_prefix=name).result().items) == 1
    assert client.future.execute("call", ns=TALK, id=name, args=b"y").result().last_event_id == 102
    with pytest.raises(ProcessRunning):
        client.future.repair(ns=TALK, id=name).result()


def test_threads_share_a_client(client: Client, name: str) -> None:
    def one(n: int) -> object:
        client.init(ns=TALK, id=f"{name}-{n}", args=b"x")
        return client.call(ns=TALK, id=f"{name}-{n}", args=b"call %d" % n)

    with ThreadPoolExecutor(30) as threads:
        assert list(threads.map(one, range(200))) == [b"call %d" % n for n in range(200)]


# Its errors


RAISED: Mapping[type[Exception], Callable[[Client, str], object]] = {
    NamespaceNotFound: lambda c, name: c.call(ns="no/where", id=name),
    ProcessNotFound: lambda c, name: c.remove(ns=TALK, id=name),
    ProcessAlreadyExists: lambda c, name: [c.init(ns=TALK, id=name, args=b"x") for _ in range(2)],
    ProcessRunning: lambda c, name: [c.init(ns=TALK, id=name, args=b"x"), c.repair(ns=TALK, id=name)],
    ProcessorError: lambda c, name: c.init(ns=TALK, id=name, args=say(fail="no")),
    IdempotencyConflict: lambda c, name: [
        c.init(ns=TALK, id=f"{name} {n}", args=b"x", idempotency_key=name) for n in range(2)
    ],
}


@pytest.mark.parametrize("error", RAISED)
def test_errors_are_those_of_the_process(client: Client, name: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        RAISED[error](client, name)
    assert type(caught.value) is error
    assert str(caught.value) == ("no" if error is ProcessorError else str(error()))


def test_an_error_and_its_repair(client: Client, name: str) -> None:
    client.init(ns=TALK, id=name, args=b"x")
    with pytest.raises(ProcessorError) as failed:
        client.call(ns=TALK, id=name, args=say(fail="because"))
    assert failed.value.reason == "because"
    with pytest.raises(ProcessInError):
        client.call(ns=TALK, id=name)
    assert client.repair(ns=TALK, id=name, args=b"mended") == b"mended"
    with pytest.raises(ProcessorError):
        client.call(ns=TALK, id=name, args=say(fail="again"))
    client.simple_repair(ns=TALK, id=name)
    assert client.get(ns=TALK, id=name).status == "running"


INVALID: Mapping[str, Callable[[Client], object]] = {
    "ns": lambda c: c.call(ns="", id="x"),
    "id": lambda c: c.call(ns=TALK, id=5),  # type: ignore[arg-type]
    "args": lambda c: c.call(ns=TALK, id="x", args="text"),  # type: ignore[arg-type]
    "context": lambda c: c.remove(ns=TALK, id="x", context=None),  # type: ignore[arg-type]
    "idempotency_key": lambda c: c.call(ns=TALK, id="x", idempotency_key=""),
    "timeout": lambda c: c.call(ns=TALK, id="x", timeout=0),
    "timeout of get": lambda c: c.get(ns=TALK, id="x", timeout="1"),  # type: ignore[arg-type]
    "range": lambda c: c.get(ns=TALK, id="x", range=5),  # type: ignore[arg-type]
    "range.direction": lambda c: c.get(ns=TALK, id="x", range=Range(direction="up")),
    "range.limit": lambda c: c.call(ns=TALK, id="x", range=Range(limit=-1)),
    "at_least_event_id": lambda c: c.get(ns=TALK, id="x", at_least_event_id=2**63),
    "op": lambda c: c.execute("explode", ns=TALK, id="x"),
    "process.process_id": lambda c: c.put(ns=TALK, id="x", process=Process("y")),
    "process.metadata": lambda c: c.put(ns=TALK, id="x", process=Process("x", metadata={"a": object()})),
    "action": lambda c: c.put(ns=TALK, id="x", process=Process("x"), action=progressor.Remove()),
    "status": lambda c: c.list(ns=TALK, status="up"),
    "created_from": lambda c: c.list(ns=TALK, created_from="today"),  # type: ignore[arg-type]
    "limit": lambda c: c.list(ns=TALK, limit=0),
    "cursor": lambda c: c.list(ns=TALK, cursor=""),
    "namespaces": lambda c: c.health_check(TALK),
}


@pytest.mark.parametrize("field", INVALID)
def test_an_invalid_request_names_the_field(client: Client, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        INVALID[field](client)
    assert caught.value.field == field.partition(" ")[0]


def test_a_future_brings_the_refusal_of_bad_input(client: Client) -> None:
    refused: list[Future[Any]] = [
        client.future.execute("explode", ns=TALK, id="x"),
        client.future.call(ns=TALK, id=""),
        client.future.get(ns="", id="x"),
        client.future.put(ns=TALK, id="x", process=Process("y")),
        client.future.trace(ns=TALK, id=""),
        client.future.list(ns=TALK, limit=0),
        client.future.health_check(TALK),
    ]
    for future in refused:
        with pytest.raises(InvalidRequest):
            future.result()


@pytest.mark.parametrize("size", [32 * 1024 * 1024, 200_000_000])
def test_a_request_that_is_too_large(client: Client, name: str, size: int) -> None:
    """The limit is told, not a lost connection, and the client goes on."""
    with pytest.raises(InvalidRequest, match=r"request: .*33554432") as caught:
        client.init(ns=TALK, id=name, args=bytes(size))
    assert caught.value.field == "request"
    client.init(ns=TALK, id=name, args=b"x")


@pytest.mark.parametrize("scheme", ["thrift", "http"])
def test_a_request_that_thrift_cannot_carry(scheme: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is not sent: nobody listens."""
    with Client(f"{scheme}://127.0.0.1:1") as client:
        monkeypatch.setattr(codec, "LARGEST", 1000)
        with pytest.raises(InvalidRequest, match=r"request: .*1000"):
            client.init(ns=TALK, id=name, args=bytes(1000))
        with pytest.raises(CannotConnect):
            client.init(ns=TALK, id=name, args=bytes(500))


def test_any_patience_is_possible(client: Client, name: str) -> None:
    client.init(ns=TALK, id=name, args=b"x", timeout=1e300)
    assert client.get(ns=TALK, id=name, timeout=1e300).last_event_id == 1


def test_no_answer_in_time(client: Client, gates: Gates, name: str) -> None:
    client.init(ns=NS, id=name)
    gates.hold(name)
    with pytest.raises(RequestTimeout, match="outcome is unknown"):
        client.call(ns=NS, id=name, timeout=0.3)
    gates.await_step(name)
    gates.open(name)
    eventually(lambda: client.get(ns=NS, id=name).last_event_id == 2)


def test_a_client_that_waits_no_longer(node: NodeProcess, gates: Gates, name: str) -> None:
    with Client(node.thrift_url, read_timeout=0.5) as client:
        client.init(ns=NS, id=name)
        gates.hold(name)
        with pytest.raises(RequestTimeout, match="no answer in time, the outcome is unknown"):
            client.call(ns=NS, id=name)
        gates.await_step(name)
        gates.open(name)
        eventually(lambda: client.get(ns=NS, id=name).last_event_id == 2)


def test_a_process_in_its_init(client: Client, gates: Gates, name: str) -> None:
    gates.hold(name)
    beginning = client.future.init(ns=NS, id=name)
    gates.await_step(name)
    with pytest.raises(ProcessInInit):
        client.repair(ns=NS, id=name)
    gates.open(name)
    assert beginning.result() is None


# Its connections


def test_a_connection_is_used_again_and_one_that_was_cut_is_replaced(relay: Relay, name: str) -> None:
    with Client(relay.url) as client:
        client.init(ns=TALK, id=name, args=b"x")
        assert client.call(ns=TALK, id=name, args=b"y") == b"y"
        assert relay.connections == 1
        relay.cut()
        assert client.call(ns=TALK, id=name, args=b"z") == b"z"
        assert relay.connections == 2
        assert client.get(ns=TALK, id=name).last_event_id == 3


@pytest.mark.parametrize("loss", Loss)
def test_a_request_that_may_have_been_executed_is_not_sent_again(relay: Relay, name: str, loss: Loss) -> None:
    with Client(relay.url) as client:
        client.init(ns=TALK, id=name, args=b"x")
        relay.lose(b"marked", loss)
        with pytest.raises(RequestTimeout, match=r"timeout: the connection broke, the outcome is unknown"):
            client.call(ns=TALK, id=name, args=b"marked")
        done = 2 if loss is Loss.ANSWER else 1
        assert client.get(ns=TALK, id=name).last_event_id == done


@pytest.mark.parametrize("loss", Loss)
def test_a_request_with_a_key_is_sent_again_and_has_one_effect(relay: Relay, name: str, loss: Loss) -> None:
    with Client(relay.url) as client:
        client.init(ns=TALK, id=name, args=b"x")
        relay.lose(b"marked", loss)
        assert client.call(ns=TALK, id=name, args=b"marked", idempotency_key=f"key of {name}") == b"marked"
        assert client.get(ns=TALK, id=name).last_event_id == 2
        for _ in range(2):
            relay.lose(b"unlucky", loss)
        with pytest.raises(RequestTimeout, match="outcome is unknown"):
            client.call(ns=TALK, id=name, args=b"unlucky", idempotency_key=f"other key of {name}")


@pytest.mark.parametrize("loss", Loss)
def test_what_only_reads_is_sent_again(relay: Relay, name: str, loss: Loss) -> None:
    with Client(relay.url) as client:
        client.init(ns=TALK, id=name, args=b"x")
        relay.lose(b"Get", loss)
        assert client.get(ns=TALK, id=name).last_event_id == 1
        for _ in range(2):
            relay.lose(b"Trace", loss)
        with pytest.raises(CannotConnect):
            client.trace(ns=TALK, id=name)


def test_a_put_is_not_sent_again(relay: Relay, name: str) -> None:
    with Client(relay.url) as client:
        relay.lose(b"Put", Loss.ANSWER)
        with pytest.raises(RequestTimeout):
            client.put(ns=TALK, id=name, process=Process(name))
        assert client.get(ns=TALK, id=name).status == "running"


def test_a_connection_that_breaks_before_it_serves_has_done_nothing(relay: Relay, name: str) -> None:
    relay.lose(b"Authenticate", Loss.ANSWER)
    with Client(relay.url) as client, pytest.raises(CannotConnect):
        client.init(ns=TALK, id=name, args=b"x")


def test_nobody_listens(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for scheme in ("thrift", "http", "thrifts", "https"):
        url = f"{scheme}://127.0.0.1:{port}"
        with Client(url) as client, pytest.raises(CannotConnect) as caught:
            client.call(ns=TALK, id=name)
        assert str(caught.value) == f"cannot connect to {url}: Connection refused"


def test_a_host_that_is_not_there(name: str) -> None:
    with Client("thrift://no.such.host.invalid:1") as client, pytest.raises(CannotConnect, match=r"no\.such\.host"):
        client.call(ns=TALK, id=name)


def test_somebody_who_never_speaks(name: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"thrift://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.3) as client,
        pytest.raises(CannotConnect, match="timed out"),
    ):
        client.call(ns=TALK, id=name)


@pytest.mark.parametrize(
    ("scheme", "beginning"),
    [
        ("thrift", b"\0\x0f\0\0"),
        ("http", b"HTTP/1.1 200 OK\r\nx: "),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"),
    ],
)
def test_an_answer_that_never_ends(scheme: str, beginning: bytes, name: str) -> None:
    """Over TCP already the first one of a connection."""
    with (
        dripping(beginning) as port,
        Client(f"{scheme}://127.0.0.1:{port}", connect_timeout=0.3, read_timeout=0.3) as client,
        pytest.raises((CannotConnect, RequestTimeout), match=r"timed out|no answer in time"),
    ):
        client.call(ns=TALK, id=name)


def test_who_is_no_node(node: NodeProcess, name: str) -> None:
    swapped = (node.thrift_url.replace("thrift", "http"), node.url.replace("http", "thrift"))
    for url in swapped:
        with Client(url, connect_timeout=1, read_timeout=1) as client, pytest.raises((CannotConnect, UnexpectedAnswer)):
            client.get(ns=TALK, id=name)
    with Client(f"{node.url}/health") as client, pytest.raises(UnexpectedAnswer, match="HTTP 405"):
        client.get(ns=TALK, id=name)


def test_a_node_that_starts_again(database: Database, tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = settings(database, tmp_path, thrift=f"127.0.0.1:{port}")
    with Client(f"thrift://127.0.0.1:{port}") as client:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with started(tmp_path / "log", "--config", file) as node:
                node.wait_ready()
                client.put(ns=TALK, id=f"{name} {number}", process=Process(f"{name} {number}"))
                node.stop(number)
            with pytest.raises(CannotConnect):
                client.get(ns=TALK, id=name)
        with started(tmp_path / "log", "--config", file) as node:
            node.wait_ready()
            assert len(client.list(ns=TALK).items) == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_node_that_stops_answers_who_waits(database: Database, tmp_path: Path, name: str, transport: str) -> None:
    gates = Gates(tmp_path)
    file = settings(database, tmp_path, drain_timeout=0.5, limits={"stop_timeout": 0.5})
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        with Client(node.thrift_url if transport == "thrift" else node.url) as client:
            gates.hold(name)
            held = client.future.init(ns=NS, id=name)
            gates.await_step(name)
            node.send(signal.SIGTERM)
            with pytest.raises((RequestTimeout, StorageUnavailable), match="the node stops"):
                held.result()
        assert node.wait() == 0
        assert "Traceback" not in node.errors


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_step_that_ends_while_the_node_stops(database: Database, tmp_path: Path, name: str, transport: str) -> None:
    gates = Gates(tmp_path)
    with started(tmp_path / "log", "--config", settings(database, tmp_path)) as node:
        node.wait_ready()
        with Client(node.thrift_url if transport == "thrift" else node.url) as client:
            gates.hold(name)
            held = client.future.execute("init", ns=NS, id=name)
            gates.await_step(name)
            node.send(signal.SIGTERM)
            eventually(lambda: node.get("/ready").status == 503)
            with pytest.raises(StorageUnavailable, match="the node stops"):
                client.init(ns=NS, id="late")
            gates.open(name)
            assert held.result().last_event_id == 1
        assert node.wait() == 0


def test_what_may_have_been_stored_is_not_said_to_be_not(database: Database, tmp_path: Path, name: str) -> None:
    """The first request of two runs; only the second is refused."""
    gates = Gates(tmp_path)
    with started(tmp_path / "log", "--config", settings(database, tmp_path)) as node:
        node.wait_ready()
        with relaying(node.thrift_url) as relay, Client(relay.url) as client:
            gates.hold(name)
            held = client.future.init(ns=NS, id=name, idempotency_key=name)
            gates.await_step(name)
            node.send(signal.SIGTERM)
            eventually(lambda: node.get("/ready").status == 503)
            relay.cut()
            with pytest.raises(RequestTimeout, match=r"the outcome is unknown: .*the node stops"):
                held.result()
            gates.open(name)
        assert node.wait() == 0


# What it is given


@pytest.mark.parametrize("secret", ["", "two words", "line\n", "é"])
def test_a_secret_that_no_header_can_carry_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("http://h", secret=secret)
    assert str(caught.value) == "secret: expected a secret of letters, digits and signs of ASCII, without spaces"


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ca: goes with thrifts:// only"):
        Client("thrift://h:1", ca="ca.pem")
    with pytest.raises(ConfigError, match=r"^key: goes with a certificate only"):
        Client("thrifts://h:1", key="key.pem")
    with pytest.raises(ConfigError, match=r"cannot be used: No such file"):
        Client("https://h", ca=tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"cannot be used: "):
        Client("https://h", ca=tmp_path / "ca.pem")
