from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.cluster import Cluster
from tests.conftest import Database


@pytest.fixture
def cluster(database: Database) -> Iterator[Cluster]:
    with Cluster(database.conninfo) as cluster:
        yield cluster
