"""Instants as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor import rfc3339

AT = datetime(2024, 2, 29, 12, 30, 59, 123456, UTC)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2024-02-29T12:30:59.123456Z", AT),
        ("2024-02-29T12:30:59.123456789+00:00", AT),
        ("2024-02-29T12:30:59.12-00:00", AT.replace(microsecond=120_000)),
        ("2024-02-29T12:30:59Z", AT.replace(microsecond=0)),
    ],
)
def test_times_are_read(text: str, at: datetime) -> None:
    assert rfc3339.read(text) == at


@pytest.mark.parametrize(
    "text", ["", "soonZ", "2024-02-29", "2024-02-29T12:30:59", "2024-02-29 12:30:59Z", "2023-02-29T12:30:59Z", "٢" * 20]
)
def test_what_is_no_time_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match=f"^no RFC 3339 time: {text}") as refused:
        rfc3339.read(text)
    assert not isinstance(refused.value, rfc3339.NotUtc)


def test_times_of_other_zones_are_not_read() -> None:
    with pytest.raises(rfc3339.NotUtc):
        rfc3339.read("2024-02-29T12:30:59+01:00")


def test_times_of_other_zones_are_shown_in_utc() -> None:
    assert rfc3339.show(AT.astimezone(timezone(timedelta(hours=3))), "seconds") == "2024-02-29T12:30:59Z"


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_lose_nothing(at: datetime) -> None:
    assert rfc3339.read(rfc3339.show(at)) == at
