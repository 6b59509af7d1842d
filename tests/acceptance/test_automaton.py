"""The Automaton of a real node, called as other services call it: by the generated client over plain HTTP."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from progressor import now, rfc3339
from progressor.rpc import codec
from progressor.rpc.gen.msgpack.ttypes import Nil, Value
from progressor.rpc.gen.state_processing import Automaton
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import NS, WOODY_IDS, Gates, NodeProcess, as_toml, automaton, config, started
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

PLAIN, HELLGATE = "plain/ns", "hellgate/ns"
CONTENT_TYPE = "application/x-thrift"
VECTORS = {
    v["name"]: bytes.fromhex(v["hex"])
    for v in json.loads((Path(__file__).parents[1] / "unit/rpc/vectors.json").read_text())["thrift"]
}
GET_MACHINE = VECTORS["automaton_get_machine_call"]
_NUMBERS = count()


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    return Gates(tmp_path_factory.mktemp("automaton"))


@pytest.fixture(scope="module")
def node(postgres_server: EmbeddedPostgres, gates: Gates) -> Iterator[NodeProcess]:
    directory = gates.directory
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, directory)
        talk = {"processor": {"client": "tests.acceptance.processors:talk"}, "worker_pool_size": 5}
        settings["progressor"]["namespaces"] |= {PLAIN: talk, HELLGATE: talk | {"dialect": "hellgate"}}
        file = directory / "sys.toml"
        file.write_text(as_toml(settings))
        with started(directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node
            assert "Traceback" not in node.errors
            assert "ERROR" not in node.errors


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Automaton.Client]:
    with automaton(node) as client:
        yield client


def new_id() -> str:
    return f"m{next(_NUMBERS)}"


def desc(id: str, ns: str = PLAIN, after: int | None = None, limit: int | None = None, **given: Any) -> Any:
    return mg.MachineDescriptor(ns, mg.Reference(id=id), mg.HistoryRange(after, limit, **given))


def say(**what: Any) -> Value:
    return Value(bin=json.dumps(what).encode())


@pytest.mark.parametrize("ns", [PLAIN, HELLGATE])
@pytest.mark.parametrize(
    "value",
    [
        Value(bin=b"bytes"),
        Value(bin=b"\x83h\x02w\x01ia\x01"),
        Value(str="text"),
        Value(nl=Nil()),
        Value(obj={Value(str="k"): Value(arr=[Value(i=-1), Value(flt=0.5), Value(b=False)])}),
    ],
    ids=["bin", "term in bin", "str", "nl", "obj"],
)
def test_any_value_goes_in_and_comes_out(client: Automaton.Client, ns: str, value: Value) -> None:
    name = new_id()
    client.Start(ns, name, value)
    assert client.Call(desc(name, ns), value) == value
    assert [event.data for event in client.GetMachine(desc(name, ns)).history] == [value, value]


def test_a_machine(client: Automaton.Client) -> None:
    name = new_id()
    client.Start(PLAIN, name, say(events=3, timer=3600, aux="state"))
    whole = client.GetMachine(desc(name))
    assert (whole.ns, whole.id, whole.status) == (PLAIN, name, mg.MachineStatus(working=mg.MachineStatusWorking()))
    assert [event.id for event in whole.history] == [1, 2, 3]
    assert all(event.created_at.endswith("Z") and event.format_version == 1 for event in whole.history)
    assert whole.aux_state == mg.Content(data=Value(bin=b"state"))
    assert rfc3339.show(now()) < whole.timer < rfc3339.show(now() + timedelta(hours=2))
    assert whole.history_range == mg.HistoryRange()
    back = desc(name, after=3, limit=1, direction=mg.Direction.backward)
    assert [event.id for event in client.GetMachine(back).history] == [2]
    assert client.GetMachine(desc(name, limit=0)).history == []
    assert client.Call(desc(name, after=1, limit=1), say(echo=True)) == Value(bin=b"2")
    client.Remove(PLAIN, name)
    with pytest.raises(mg.MachineNotFound):
        client.GetMachine(desc(name))


def test_a_machine_without_state(client: Automaton.Client) -> None:
    name = new_id()
    client.Start(PLAIN, name, say(events=0))
    machine = client.GetMachine(desc(name))
    assert (machine.aux_state, machine.timer) == (mg.Content(data=Value(nl=Nil())), None)


def test_failure_and_repair(client: Automaton.Client) -> None:
    name = new_id()
    client.Start(PLAIN, name, say(events=1))
    with pytest.raises(mg.MachineAlreadyWorking):
        client.Repair(desc(name), say(events=1))
    with pytest.raises(mg.MachineAlreadyWorking):
        client.SimpleRepair(PLAIN, mg.Reference(id=name))
    for _ in range(2):
        with pytest.raises(mg.MachineFailed):
            client.Call(desc(name), say(fail="because"))
    assert client.GetMachine(desc(name)).status.failed.reason == "because"
    with pytest.raises(mg.MachineFailed):
        client.Repair(desc(name), say(fail="again"))
    assert client.Repair(desc(name), say(events=1, echo=True)) == Value(bin=b"1")
    with pytest.raises(mg.MachineFailed):
        client.Call(desc(name), say(fail="because"))
    client.SimpleRepair(PLAIN, mg.Reference(id=name))
    assert client.GetMachine(desc(name)).status.working is not None


def test_notify(client: Automaton.Client) -> None:
    name = new_id()
    client.Start(PLAIN, name, say(events=0))
    assert int(client.Notify(desc(name), Value(str="news")).id) > 0
    eventually(lambda: [event.data for event in client.GetMachine(desc(name)).history] == [Value(str="news")])


GHOST, NOWHERE = desc("ghost"), desc("ghost", "no/where")
THROWN: Mapping[str, tuple[type[Exception], Callable[[Automaton.Client], object]]] = {
    "start again": (mg.MachineAlreadyExists, lambda c: [c.Start(PLAIN, "twice", say(events=0)) for _ in range(2)]),
    "start failing": (mg.MachineFailed, lambda c: c.Start(PLAIN, new_id(), say(fail="no"))),
    "start": (mg.NamespaceNotFound, lambda c: c.Start("no/where", "ghost", say())),
    "call nowhere": (mg.NamespaceNotFound, lambda c: c.Call(NOWHERE, say())),
    "call": (mg.MachineNotFound, lambda c: c.Call(GHOST, say())),
    "repair nowhere": (mg.NamespaceNotFound, lambda c: c.Repair(NOWHERE, say())),
    "repair": (mg.MachineNotFound, lambda c: c.Repair(GHOST, say())),
    "simple repair": (mg.MachineNotFound, lambda c: c.SimpleRepair(PLAIN, mg.Reference(id="ghost"))),
    "get nowhere": (mg.NamespaceNotFound, lambda c: c.GetMachine(NOWHERE)),
    "get": (mg.MachineNotFound, lambda c: c.GetMachine(GHOST)),
    "remove": (mg.MachineNotFound, lambda c: c.Remove(PLAIN, "ghost")),
    "notify": (mg.MachineNotFound, lambda c: c.Notify(GHOST, say())),
    "modernize": (mg.NamespaceNotFound, lambda c: c.Modernize(GHOST)),
}


@pytest.mark.parametrize("case", THROWN)
def test_declared_exceptions(client: Automaton.Client, case: str) -> None:
    thrown, ask = THROWN[case]
    with pytest.raises(thrown):
        ask(client)


def post(node: NodeProcess, body: bytes, method: str = "POST", **changed: str | None) -> tuple[int, Any, bytes]:
    """Headers by names with `_` for `-` and `__` for `.`; None leaves one out."""
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in changed.items()}
    headers = {
        name: value for name, value in {"content-type": CONTENT_TYPE, **WOODY_IDS, **given}.items() if value is not None
    }
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=30)
    connection.request(method, "/v1/automaton", body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read()
    connection.close()
    return found


def call(name: bytes, body: bytes = b"\0", kind: int = 1) -> bytes:
    return b"\x80\x01\0" + bytes([kind]) + len(name).to_bytes(4, "big") + name + b"\0\0\0\x07" + body


def get_call(direction: int = 1, ref: bytes = b"\x0b\0\1\0\0\0\1x\0") -> bytes:
    range_ = b"\x08\0\3\0\0\0" + bytes([direction]) + b"\0"
    return call(b"GetMachine", b"\x0c\0\1\x0b\0\1\0\0\0\1n\x0c\0\2" + ref + b"\x0c\0\3" + range_ + b"\0\0")


REFUSED: Mapping[str, tuple[Any, int, str | None]] = {
    "method": (partial(post, body=b"", method="GET"), 405, "wrong method: GET"),
    "content type": (partial(post, body=b"", content_type="text/plain"), 415, "wrong content type: text/plain"),
    "accept": (partial(post, body=b"", accept="*/*"), 406, "wrong client accept: */*"),
    "no span": (partial(post, body=GET_MACHINE, woody__span_id=None), 400, "bad woody. id header"),
    "long span": (partial(post, body=GET_MACHINE, woody__span_id="s" * 65), 500, None),
    "deadline": (
        partial(post, body=GET_MACHINE, woody__deadline="2099-01-01T00:00:00+01:00"),
        400,
        "bad woody.deadline header: not_utc",
    ),
    "no deadline": (partial(post, body=GET_MACHINE, woody__deadline="soonZ"), 400, "bad woody.deadline header: "),
    "too late": (partial(post, body=GET_MACHINE, woody__deadline="2001-01-01T00:00:00.5Z"), 503, "deadline reached"),
    "empty": (partial(post, body=b""), 400, "body empty"),
    "garbage": (partial(post, body=b"x"), 500, None),
    "old": (partial(post, body=b"\0\0\0\x05Start\1\0\0\0\0\0"), 400, "thrift: no binary protocol version"),
    "version": (partial(post, body=b"\x80\2\0\1\0\0\0\0"), 400, "thrift: bad binary protocol version: 2"),
    "unknown": (partial(post, body=VECTORS["unknown_method_call"]), 400, "thrift: unknown function: "),
    "multiplexed": (partial(post, body=call(b"A:Start")), 400, "thrift: multiplexing (not supported)"),
    "reply": (partial(post, body=call(b"GetMachine", kind=2)), 500, None),
    "truncated": (partial(post, body=GET_MACHINE[:-3]), 400, "thrift decode error: EOFError"),
    "trailing": (partial(post, body=GET_MACHINE + b"\0"), 400, "thrift decode error: trailing bytes"),
    "enum": (partial(post, body=get_call(direction=9)), 400, "thrift decode error: HistoryRange.direction"),
    "union": (partial(post, body=get_call(ref=b"\0")), 400, "thrift decode error: Reference needs exactly one member"),
    "no UTF-8": (
        partial(post, body=get_call(ref=b"\x0b\0\1\0\0\0\1\xff\0")),
        400,
        "thrift decode error: UnicodeDecodeError",
    ),
    "no argument": (partial(post, body=call(b"Start")), 400, "thrift decode error: a required argument is missing"),
    "2 GB": (partial(post, body=b"", content_length="2147483648"), 413, "a request has at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_call_is_refused(node: NodeProcess, case: str) -> None:
    ask, expected, reason = REFUSED[case]
    status, headers, body = ask(node)
    error_class = "Resource Unavailable" if expected == 503 else "Result Unexpected"
    assert (status, headers["woody.error-class"], body) == (expected, reason and error_class, b"")
    assert (headers["woody.error-reason"] or "").startswith(reason or "")
    assert headers["allow"] == ("POST" if expected == 405 else None)


def test_requests_are_counted(node: NodeProcess, client: Automaton.Client) -> None:
    def count(**labels: str) -> float:
        pattern = "".join(f'(?=.*{name}="{value}")' for name, value in labels.items())
        pattern = rf"^progressor_request_duration_ms_count{{{pattern}.*}} (\S+)$"
        return sum(map(float, re.findall(pattern, node.get("/metrics").body, re.MULTILINE)))

    cases: list[tuple[dict[str, str], Callable[[], object]]] = [
        ({"method": "Start", "outcome": "ok"}, lambda: client.Start(PLAIN, new_id(), say(events=0))),
        ({"method": "GetMachine", "outcome": "NamespaceNotFound"}, lambda: post(node, get_call())),
        ({"method": "", "outcome": "Result Unexpected"}, lambda: post(node, call(b"Unheard"))),
    ]
    for labels, ask in cases:
        before = count(service="Automaton", **labels)
        ask()
        assert count(service="Automaton", **labels) == before + 1, labels
    refused = node.metric("progressor_requests_refused_total")
    assert post(node, b"", method="GET")[0] == 405
    assert node.metric("progressor_requests_refused_total") == refused + 1
    assert node.metric("progressor_requests_running") == 0
    assert node.metric("progressor_connections") >= 1


def test_what_woody_says_of_answers(node: NodeProcess) -> None:
    status, headers, body = post(node, get_call())
    assert (status, headers["content-type"]) == (200, CONTENT_TYPE)
    assert (headers["woody.error-class"], headers["woody.error-reason"]) == ("Business Error", "NamespaceNotFound")
    assert body.startswith(b"\x80\x01\0\x02\0\0\0\nGetMachine\0\0\0\x07")
    later = rfc3339.show(now() + timedelta(minutes=1))
    assert post(node, get_call(), woody__deadline=later, accept=CONTENT_TYPE)[0] == 200
    status, headers, body = post(node, call(b"GetMachine", get_call()[22:], kind=4))
    assert (status, body) == (200, b"")


def test_a_replacement_character_is_a_character(client: Automaton.Client) -> None:
    name = f"\ufffd {new_id()}"
    client.Start(PLAIN, name, say(events=0))
    assert client.GetMachine(desc(name)).id == name


def test_a_deadline_that_comes_while_the_step_runs(node: NodeProcess, client: Automaton.Client, gates: Gates) -> None:
    name = new_id()
    client.Start(NS, name, say())
    gates.hold(name)
    message = codec.encode_message("Call", codec.CALL, 0, Automaton.Call_args(desc(name, NS), say()))
    deadline = rfc3339.show(now() + timedelta(seconds=0.5))
    status, headers, _ = post(node, message, woody__deadline=deadline)
    gates.await_step(name)
    gates.open(name)
    assert (status, headers["woody.error-class"]) == (504, "Result Unknown")


@pytest.mark.parametrize("sent", ["whole", "half"])
def test_a_node_that_stops_says_whether_it_did_anything(database: Database, tmp_path: Path, sent: str) -> None:
    """With a step that takes longer than it drains, or half of a request."""
    settings, gates = config(database.conninfo, tmp_path, node={"drain_timeout": 0.5}), Gates(tmp_path)
    settings["listen"]["limits"] = {"stop_timeout": 0.5}
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    message = codec.encode_message("Call", codec.CALL, 1, Automaton.Call_args(desc("m", NS), say()))
    with started(tmp_path / "log", "--config", file) as node, ThreadPoolExecutor() as pool:
        node.wait_ready()
        with automaton(node) as client:
            client.Start(NS, "m", say())
        gates.hold("m")
        if sent == "whole":
            answer = pool.submit(post, node, message)
            gates.await_step("m")
        else:
            answer = pool.submit(post, node, message, content_length=str(len(message) + 1))
            eventually(lambda: node.metric("progressor_connections") == 2)  # with the one that asks
        node.send(signal.SIGTERM)
        status, headers, _ = answer.result(30)
        expected = (504, "Result Unknown") if sent == "whole" else (503, "Resource Unavailable")
        assert (status, headers["woody.error-class"]) == expected
        assert "the server stops" in headers["woody.error-reason"]
        assert node.wait() == 0
        assert "Traceback" not in node.errors


def test_the_context_reaches_the_processor(node: NodeProcess, client: Automaton.Client) -> None:
    headers = {"woody.meta.user-identity.id": "me", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    name = new_id()
    client.Start(PLAIN, name, say(events=0))
    with automaton(node, **headers) as machines:
        shown = machines.Call(desc(name), say(context=True)).bin
    for part in (b"woody", b"user-identity.id", b"me", b"otel", b"a" * 32, b"b" * 16):
        assert part in shown


def test_many_callers_wait_at_once(node: NodeProcess) -> None:
    """More than there are workers, and no thread for each."""

    def one(_: int) -> object:
        with automaton(node) as machines:
            name = new_id()
            machines.Start(PLAIN, name, say(events=0))
            return machines.Call(desc(name), say(events=0))

    with ThreadPoolExecutor(100) as callers:
        assert list(callers.map(one, range(300))) == [Value(nl=Nil())] * 300
