"""No slot survives a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Database
from tests.eventually import eventually
from tests.integration.cache.nodes import slots


@pytest.fixture(autouse=True)
def _no_slot_survives(database: Database) -> Iterator[None]:
    yield
    eventually(lambda: not slots(database))
