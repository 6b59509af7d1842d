"""A node that stops while its actors want something of the database."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from progressor import Intent, Node, StepRequest
from progressor.otp import actors
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually
from tests.stage import PATIENCE, does


def reads(request: StepRequest) -> Intent:
    return Intent(response=b"".join(event.payload for event in request.process.history))


def test_it_complains_of_nothing_that_it_has_closed_itself(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The scanner, the zombie collector and a step that reads its history wait for a connection at that moment."""
    with stage.node(database, {"a/b": stage.steps(does(b"1"))}) as node:
        node.client.init(ns="a/b", id="p")
    node = Node.from_config(stage.config(database, {"a/b": stage.steps(reads)}))
    node.start()
    with ExitStack() as stack:
        stack.callback(node.stop)
        pools = node._databases["progressor_db"].pools
        steps, scan = pools["default_pool"], pools["default_scan_pool"]
        for pool in [steps] * 4 + [scan] * 2:  # all that they have
            stack.enter_context(pool.connection(PATIENCE))
        node.client.notify(ns="a/b", id="p")
        eventually(lambda: steps.figures()["waited_for"] == 1 and scan.figures()["waited_for"] == 2)
        node.stop(drain=False)
        eventually(lambda: not actors())
    assert "closed" not in caplog.text
    assert "a processor failed" not in caplog.text
