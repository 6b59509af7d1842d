"""The hash is that of Erlang: values that `erlang:phash2/1` gave, and a second reading of the algorithm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progressor.kafka.partitioner import phash2

VECTORS = json.loads(Path(__file__).parent.with_name("rpc").joinpath("vectors.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["phash2_raw"], ids=lambda v: v["hex"] or "empty")
def test_erlang_hashes_so(vector: dict[str, Any]) -> None:
    assert phash2(bytes.fromhex(vector["hex"])) == vector["phash2"]


@pytest.mark.parametrize("vector", VECTORS["kafka_keys"], ids=lambda v: v["key"])
@pytest.mark.parametrize("partitions", [1, 3, 10, 64])
def test_the_key_of_a_process_has_its_partition(vector: dict[str, Any], partitions: int) -> None:
    key = vector["key"].encode()
    assert key.hex() == vector["key_hex"]
    assert phash2(key) == vector["phash2"]
    assert phash2(key) % partitions == vector[f"partition_of_{partitions}"]


@given(st.binary(max_size=100))
def test_every_length_is_hashed_as_jenkins_wrote_it(key: bytes) -> None:
    assert phash2(key) == jenkins(key)


@given(st.binary(max_size=100))
def test_a_hash_has_27_bits(key: bytes) -> None:
    assert 0 <= phash2(key) < 2**27


def test_keys_spread_evenly() -> None:
    counts = [0] * 10
    for number in range(10_000):
        counts[phash2(f"default/default p{number}".encode()) % 10] += 1
    assert min(counts) > 800


def test_the_cache_is_bounded() -> None:
    assert phash2.cache_info().maxsize is not None


def jenkins(key: bytes) -> int:
    """The same byte by byte, with the words in a list and the shifts written out."""
    golden, mask = 0x9E3779B9, 2**32 - 1
    words = [golden, golden, 13 * golden & mask]
    if not key:
        return words[2] & (2**27 - 1)
    blocks, rest = divmod(len(key), 12)
    for block in range(blocks):
        for place in range(12):
            words[place // 4] += key[12 * block + place] << 8 * (place % 4)
        shift(words)
    words[2] += len(key)
    for place in range(rest):
        at = place if place < 8 else place + 1
        words[at // 4] += key[12 * blocks + place] << 8 * (at % 4)
    shift(words)
    return words[2] & (2**27 - 1)


def shift(words: list[int]) -> None:
    mask = 2**32 - 1
    for step, bits in enumerate((-13, 8, -13, -12, 16, -5, -3, 10, -15)):
        one, two, three = step % 3, (step + 1) % 3, (step + 2) % 3
        words[one] = (words[one] - words[two] - words[three]) & mask
        other = words[(step + 2) % 3] & mask
        words[one] ^= (other << bits if bits > 0 else other >> -bits) & mask
