"""A node that serves, as a process."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from progressor.serving import COLLECTOR_THRESHOLDS, tame_collector


@pytest.fixture
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("collector")
def test_the_collector_leaves_alone_what_is_there() -> None:
    old: list[object] = [[]]
    tame_collector()
    new: list[object] = [[]]
    looked_at = {id(found) for found in gc.get_objects()}
    assert id(old) not in looked_at
    assert id(new) in looked_at
    assert gc.get_threshold() == COLLECTOR_THRESHOLDS
