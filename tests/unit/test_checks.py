"""What a request may contain."""

from __future__ import annotations

import pytest

from progressor import checks
from progressor.errors import InvalidRequest


def test_a_value_has_at_most_what_the_database_can_store() -> None:
    checks.binary("args", bytes(checks.LARGEST_BINARY))
    with pytest.raises(InvalidRequest, match=r"^args: has 268435457 bytes, at most 268435456 are allowed$"):
        checks.binary("args", bytes(checks.LARGEST_BINARY + 1))
