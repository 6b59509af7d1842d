"""The retry policy (docs/design.md, "Failures")."""

from __future__ import annotations

import threading
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor.config import RetryPolicy
from progressor.engine import retry

ATTEMPTS = st.integers(1, 2**31 - 1)
SECONDS = st.floats(0, threading.TIMEOUT_MAX, exclude_min=True)
POLICIES = st.builds(
    RetryPolicy,
    initial_timeout=SECONDS,
    backoff_coefficient=st.floats(1, 1e9),
    max_timeout=SECONDS,
    max_attempts=st.integers(1, 100),
    non_retryable_errors=st.just(frozenset()),
)


def policy(initial: float, coefficient: float, cap: float, attempts: int = 3, *names: str) -> RetryPolicy:
    return RetryPolicy(initial, coefficient, cap, attempts, frozenset(names))


@pytest.mark.parametrize(
    ("initial", "coefficient", "cap", "delays"),
    [
        (3, 1.2, 180, [3, 3.6, 4.32, 5.184]),
        (1, 2, 10, [1, 2, 4, 8, 10, 10]),
        (5, 1, 180, [5, 5, 5]),
        (20, 2, 10, [10, 10]),
        (0.25, 2, 0.5, [0.25, 0.5, 0.5]),
    ],
)
def test_the_delays_of_a_policy(initial: float, coefficient: float, cap: float, delays: list[float]) -> None:
    given_policy = policy(initial, coefficient, cap)
    assert [retry.delay(given_policy, n) for n in range(1, len(delays) + 1)] == pytest.approx(delays)


@given(POLICIES, st.integers(1, 30))
def test_a_delay_is_what_the_formula_says(given_policy: RetryPolicy, attempt: int) -> None:
    grown = given_policy.initial_timeout * given_policy.backoff_coefficient ** (attempt - 1)
    assert retry.delay(given_policy, attempt) == min(grown, given_policy.max_timeout)


@given(POLICIES, st.lists(ATTEMPTS, min_size=2, max_size=20))
def test_delays_never_shrink_and_stay_between_zero_and_the_cap(given_policy: RetryPolicy, attempts: list[int]) -> None:
    delays = [retry.delay(given_policy, n) for n in sorted(attempts)]
    assert all(a <= b for a, b in pairwise(delays))
    assert all(0 < delay <= given_policy.max_timeout for delay in delays)


@given(POLICIES, ATTEMPTS)
def test_a_delay_is_a_time_that_a_clock_can_add(given_policy: RetryPolicy, attempt: int) -> None:
    assert timedelta(seconds=retry.delay(given_policy, attempt)) >= timedelta(0)


@pytest.mark.parametrize("coefficient", [2, 2.0, 1e9])
def test_huge_attempts_do_not_overflow(coefficient: float) -> None:
    assert retry.delay(policy(3, coefficient, 180), 2**63) == 180


@pytest.mark.parametrize(("attempt", "exhausted"), [(1, False), (2, False), (3, True), (4, True)])
def test_max_attempts_counts_the_first_one(attempt: int, exhausted: bool) -> None:
    assert retry.is_exhausted(policy(1, 1, 1, 3), attempt) is exhausted


@given(st.integers(1, 1000))
def test_as_many_attempts_are_made_as_the_policy_says(most: int) -> None:
    made = next(n for n in range(1, most + 2) if retry.is_exhausted(policy(1, 1, 1, most), n))
    assert made == most


@pytest.mark.parametrize(
    ("names", "retryable"),
    [
        ((), True),
        ((None,), True),
        (("other", None), True),
        (("stop", None), False),
        (("other", "ValueError"), False),
        (("stop it", "valueerror"), True),
    ],
)
def test_a_failure_is_non_retryable_by_any_of_its_names(names: tuple[str | None, ...], retryable: bool) -> None:
    assert retry.is_retryable(policy(1, 1, 1, 3, "stop", "ValueError"), *names) is retryable
