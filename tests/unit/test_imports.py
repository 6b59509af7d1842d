"""What is imported with the public names: all of them are there, and nobody waits for a node that he does not start."""

from __future__ import annotations

import subprocess
import sys

import pytest

import progressor

NODE = {
    "confluent_kafka",
    "prometheus_client",
    "progressor.application",
    "progressor.config",
    "progressor.engine",
    "progressor.otp",
    "progressor.storage",
    "psycopg",
    "pykka",
    "uvicorn",
}
RPC = {"progressor.rpc", "thrift"}


def names_after(statement: str, names: str = "sys.modules") -> set[str]:
    """In a new interpreter: by default of the modules that it has then."""
    program = f"import sys\n{statement}\nprint(*{names})"
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return set(run.stdout.split())


def test_a_node_brings_in_the_engine() -> None:
    assert names_after("from progressor import Node") >= NODE | RPC


@pytest.mark.parametrize("statement", ["import progressor.cli", "from progressor import Client"])
def test_a_client_does_not(statement: str) -> None:
    found = names_after(statement)
    assert found >= RPC
    assert not found & NODE


@pytest.mark.parametrize(
    "statement", ["import progressor", "from progressor import Event, Intent", "import processors.payment"]
)
def test_a_processor_brings_in_neither(statement: str) -> None:
    assert not names_after(statement) & (NODE | RPC)


def test_the_public_names_are_there_and_listed() -> None:
    assert all(hasattr(progressor, name) for name in progressor.__all__)
    assert names_after("import progressor", "dir(progressor)") >= set(progressor.__all__)


def test_no_other_name_is() -> None:
    with pytest.raises(AttributeError, match=r"^module 'progressor' has no attribute 'Nodes'$"):
        _ = progressor.Nodes  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Nodes'"):
        from progressor import Nodes  # type: ignore[attr-defined] # noqa: F401, PLC0415
