"""The hash of parts: the same whatever the pieces in which the bytes come."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.platform.parts import BLOCK_SIZE, PartHash, part_hash

DATA = (bytes(range(251)) * 8400)[: 4 * BLOCK_SIZE + 17]


def expected(data: bytes) -> str:
    blocks = (data[begin : begin + BLOCK_SIZE] for begin in range(0, len(data), BLOCK_SIZE))
    return hashlib.sha256(b"".join(hashlib.sha256(block).digest() for block in blocks)).hexdigest()


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, len(DATA)])
def test_hash_is_that_of_the_hashes_of_blocks(size: int) -> None:
    assert part_hash(DATA[:size]) == expected(DATA[:size])


@given(st.lists(st.integers(0, len(DATA)), max_size=8))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    whole = PartHash()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(DATA)], strict=True):
        whole.update(DATA[begin:end])
    assert whole.hexdigest() == expected(DATA)
