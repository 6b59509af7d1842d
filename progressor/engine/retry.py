"""The retry policy: whether a failed task is tried again, and when (docs/design.md, "Failures")."""

from __future__ import annotations

from progressor.config import RetryPolicy


def delay(policy: RetryPolicy, attempt: int) -> float:
    """Seconds between attempt `attempt` (1, 2, ...) and the next: min(initial x coefficient^(attempt-1), max)."""
    try:
        grown = policy.initial_timeout * float(policy.backoff_coefficient) ** (attempt - 1)
    except OverflowError:
        return policy.max_timeout
    return min(grown, policy.max_timeout)


def is_exhausted(policy: RetryPolicy, attempt: int) -> bool:
    """Whether attempt `attempt` (1, 2, ...) was the last."""
    return attempt >= policy.max_attempts


def is_retryable(policy: RetryPolicy, *names: str | None) -> bool:
    """False when one of the names of a failure (its reason, its exception class) is non-retryable by policy."""
    return not any(name in policy.non_retryable_errors for name in names if name is not None)
