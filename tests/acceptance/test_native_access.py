"""Who may use the native service: TLS on both ports, certificates of clients and their names, a secret."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.THttpClient import THttpClient
from thrift.transport.TSSLSocket import TSSLSocket
from thrift.transport.TTransport import TFramedTransport, TTransportException

from progressor import AccessDenied, CannotConnect, Client, Process, ProcessNotFound
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.native import Progressor as Native
from progressor.rpc.gen.native import ttypes as t
from tests.acceptance.nodes import FREE_PORT, NS, NodeProcess, as_toml, automaton, config, native, started
from tests.conftest import Database

SECRET = "correct-horse-battery-staple"


@pytest.fixture(params=["thrift", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def node(database: Database, directory: Path, **listen: Any) -> Iterator[NodeProcess]:
    given = config(database.conninfo, directory)
    given["listen"] |= {"thrift": FREE_PORT, **listen}
    file = directory / "sys.toml"
    file.write_text(as_toml(given))
    with started(directory / "log", "--config", file, "--log-level", "debug") as running:
        running.wait_ready()
        yield running
        assert "Traceback" not in running.errors
        assert SECRET not in running.errors


def url(node: NodeProcess, transport: str) -> str:
    return node.thrift_url if transport == "thrift" else node.url


def tls(certificates: Path, *, of_clients: bool = False) -> dict[str, str]:
    given = {"certificate": str(certificates / "node.pem"), "key": str(certificates / "node.key")}
    return given | ({"client_ca": str(certificates / "ca.pem")} if of_clients else {})


def own(certificates: Path, name: str) -> dict[str, Any]:
    """What a client of this name is given."""
    return {
        "ca": certificates / "ca.pem",
        "certificate": certificates / f"{name}.pem",
        "key": certificates / f"{name}.key",
    }


def is_served(client: Client) -> bool:
    with client, pytest.raises(ProcessNotFound):
        client.get(ns=NS, id="nobody")
    return True


def test_tls_on_both_ports(database: Database, certificates: Path, tmp_path: Path, transport: str) -> None:
    with node(database, tmp_path, tls=tls(certificates)) as running:
        where = url(running, transport)
        assert where.startswith(f"{transport}s://")
        assert is_served(Client(where, ca=certificates / "ca.pem"))
        with Client(where) as wary, pytest.raises(CannotConnect, match="certificate verify failed"):
            wary.get(ns=NS, id="nobody")
        plain = where.replace(f"{transport}s", transport)
        with Client(plain, connect_timeout=5) as open_, pytest.raises(CannotConnect):
            open_.get(ns=NS, id="nobody")
        with Client(where, ca=certificates / "ca.pem") as busy:
            parts = [
                busy.future.put(ns=NS, id=f"p{n}", process=Process(f"p{n}", aux_state=b"x" * n)) for n in range(99)
            ]
            assert [part.result() for part in parts] == [None] * 99


def test_tls_with_clients_of_apache(database: Database, certificates: Path, tmp_path: Path, transport: str) -> None:
    with node(database, tmp_path, tls=tls(certificates)) as running:
        stream: Any
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        if transport == "http":
            stream = THttpClient(f"{running.url}/v1/progressor", ssl_context=context)
        else:
            host, port = running.thrift_url.removeprefix("thrifts://").split(":")
            stream = TFramedTransport(TSSLSocket(host, int(port), ssl_context=context, server_hostname=host))
        stream.open()
        with pytest.raises(t.ProcessNotFound):
            Native.Client(TBinaryProtocol(stream)).Get(t.GetRequest(NS, "nobody"))
        stream.close()


def test_certificates_of_clients(database: Database, certificates: Path, tmp_path: Path, transport: str) -> None:
    with node(database, tmp_path, tls=tls(certificates, of_clients=True)) as running:
        where = url(running, transport)
        for name in ("client", "stranger"):
            assert is_served(Client(where, **own(certificates, name)))
        for refused in (
            Client(where, ca=certificates / "ca.pem"),
            Client(where, **own(certificates, "forger")),
        ):
            with refused, pytest.raises(CannotConnect):
                refused.init(ns=NS, id="refused")
        assert is_served(Client(where, **own(certificates, "client")))


def test_names_of_clients(database: Database, certificates: Path, tmp_path: Path, transport: str) -> None:
    given = {"tls": tls(certificates, of_clients=True), "native": {"clients": ["operator", "client"]}}
    with node(database, tmp_path, **given) as running:
        where = url(running, transport)
        assert is_served(Client(where, **own(certificates, "client")))
        with (
            Client(where, **own(certificates, "stranger")) as stranger,
            pytest.raises(AccessDenied, match="certificate of the client has none of the names"),
        ):
            stranger.init(ns=NS, id="refused")
        with Client(where, **own(certificates, "client")) as client, pytest.raises(ProcessNotFound):
            client.get(ns=NS, id="refused")


def test_a_secret(database: Database, tmp_path: Path, transport: str) -> None:
    with node(database, tmp_path, native={"secret": SECRET}) as running:
        where = url(running, transport)
        assert is_served(Client(where, secret=SECRET))
        for given, problem in ((None, "a secret is needed"), (SECRET[:-1], "wrong secret")):
            with Client(where, secret=given) as refused, pytest.raises(AccessDenied, match=problem) as caught:
                refused.init(ns=NS, id="refused")
            assert SECRET not in str(caught.value)
        with Client(where, secret=SECRET) as client:
            with pytest.raises(ProcessNotFound):
                client.get(ns=NS, id="refused")
            assert [f.result() for f in [client.future.init(ns=NS, id=f"p{n}") for n in range(20)]] == [None] * 20
        assert running.get("/ready").status == 200


def test_a_secret_and_a_client_of_apache_over_tcp(database: Database, tmp_path: Path) -> None:
    with node(database, tmp_path, native={"secret": SECRET}) as running:
        with native(running, "thrift") as client:
            client.Authenticate(SECRET)
            client.Init(t.Request(NS, "one"))
            assert client.Get(t.GetRequest(NS, "one")).last_event_id == 1
        verbs: Sequence[Callable[[Any], object]] = (
            lambda c: c.Authenticate("guess"),
            lambda c: c.Init(t.Request(NS, "two")),
            lambda c: c.Get(t.GetRequest(NS, "one")),
            lambda c: c.Put(t.PutRequest(NS, "two", t.NewProcess())),
            lambda c: c.Trace(NS, "one"),
            lambda c: c.List(t.ListRequest(NS)),
            lambda c: c.HealthCheck([NS]),
        )
        for ask in verbs:
            with native(running, "thrift") as stranger:
                with pytest.raises(t.AccessDenied):
                    ask(stranger)
                with pytest.raises((TTransportException, OSError, EOFError)):  # nobody guesses twice on a connection
                    stranger.Authenticate(SECRET)


def test_a_secret_and_a_client_of_apache_over_http(database: Database, tmp_path: Path) -> None:
    with node(database, tmp_path, native={"secret": SECRET}) as running:
        for header, is_let_in in (
            ({"Authorization": f"Bearer {SECRET}"}, True),
            ({"authorization": f"bearer  {SECRET} "}, True),
            ({}, False),
            ({"Authorization": f"Basic {SECRET}"}, False),
            ({"Authorization": SECRET}, False),
            ({"Authorization": f"Bearer {SECRET}x"}, False),
        ):
            stream = THttpClient(f"{running.url}/v1/progressor")
            stream.setCustomHeaders(header)
            client = Native.Client(TBinaryProtocol(stream))
            with pytest.raises(t.ProcessNotFound if is_let_in else t.AccessDenied):
                client.Get(t.GetRequest(NS, "nobody"))
            stream.close()


def test_a_secret_does_not_concern_the_automaton(database: Database, tmp_path: Path) -> None:
    with node(database, tmp_path, native={"secret": SECRET}) as running, automaton(running) as machines:
        machines.Start(NS, "m", Value(bin=b""))
