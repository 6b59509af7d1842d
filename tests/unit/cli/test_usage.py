"""Wrong arguments and documents: each is named, with the remedy, before any node is asked."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping

import pytest

from progressor.cli import main

WRONG: Mapping[str, tuple[list[str], str]] = {
    "nothing": ([], "the following arguments are required: VERB"),
    "verb": (["destroy", "ns", "p"], "invalid choice: 'destroy'"),
    "no process": (["call", "ns"], "the following arguments are required: ID"),
    "number": (["get", "ns", "p", "--limit", "-1"], "expected a number of at least 0, got '-1'"),
    "seconds": (["get", "ns", "p", "--timeout", "soon"], "expected seconds, got 'soon'"),
    "time": (["list", "ns", "--created-from", "yesterday"], "expected a time with its zone"),
    "metadata": (["list", "ns", "--metadata", "[]"], "expected a JSON object"),
    "file": (["call", "ns", "p", "@/no/file"], "cannot read '/no/file': No such file or directory"),
    "base64": (["call", "ns", "p", "base64:%"], "no base64"),
    "no JSON": (["put", "ns", "p", "-"], "no JSON in '-'"),
    "remove alone": (["put", "ns", "p", "-", "--remove"], "--remove goes with --timer"),
    "url": (["get", "ns", "p", "--url", "ftp://x"], "url: expected one of thrift://"),
    "ca": (["get", "ns", "p", "--ca", "/no/file"], "ca: goes with http"),
    "secret": (["get", "ns", "p", "--secret-file", "/no/file"], "--secret-file: cannot be read"),
}


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which never gets to a node; what it says on standard error."""

    def run(*arguments: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        monkeypatch.setenv("PROGRESSOR_URL", "http://127.0.0.1:1")
        try:
            status: object = main(arguments)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        assert (status, said.out) == (2, "")
        return said.err

    return run


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_told(fails: Callable[..., str], case: str) -> None:
    arguments, text = WRONG[case]
    assert text in fails(*arguments, stdin="{}" if "--remove" in arguments else "{")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("[]", "the process: expected a JSON object"),
        ('{"stats": 1}', "the process.stats: unknown key"),
        ('{"aux_state": "x"}', 'the process.aux_state: expected {"text": ...} or {"base64": ...}'),
        ('{"history": [{"payload": {"base64": "%"}}]}', "history[0].payload: no base64"),
        ('{"history": [{"timestamp": "now"}]}', "history[0].timestamp: expected a time with its zone"),
    ],
)
def test_a_document_that_is_wrong_is_told(fails: Callable[..., str], document: str, text: str) -> None:
    assert text in fails("put", "ns", "p", "-", stdin=document)
