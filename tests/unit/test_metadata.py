"""Metadata in memory are as they will be read from the database."""

from __future__ import annotations

import json
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor.metadata import encode, own


class Word(StrEnum):
    ONE = "one"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON))
def test_what_json_can_say_stays(metadata: dict[str, Any]) -> None:
    found = own(metadata)
    assert found == metadata == json.loads(encode(found))
    assert found is not metadata


def test_a_copy_shares_nothing() -> None:
    metadata: dict[str, Any] = {"a": [{"b": []}]}
    found = own(metadata)
    metadata["a"][0]["b"].append(1)
    assert found == {"a": [{"b": []}]}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({1: 2, None: 3, 1.5: 4}, {"1": 2, "null": 3, "1.5": 4}),
        ({"a": {1: 2}}, {"a": {"1": 2}}),
        ({"a": Word.ONE}, {"a": "one"}),
        ({Word.ONE: 1}, {"one": 1}),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
        (MappingProxyType({}), {}),
    ],
)
def test_what_json_says_otherwise_becomes_that(metadata: Any, expected: dict[str, Any]) -> None:
    found = own(metadata)
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("value", [object(), {1}, b"bytes"])
def test_what_is_no_json_is_left_to_the_storage(value: object) -> None:
    metadata = {"a": value}
    assert own(metadata) is metadata
