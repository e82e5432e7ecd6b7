"""Sets of code points, beside Python's own sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pywebml.tokenization import code_points as points
from pywebml.tokenization.code_points import CodePoints

MEMBERS = st.sets(st.one_of(st.integers(0, 40), st.integers(points.LAST - 5, points.LAST)))


def ranges(members: set[int]) -> CodePoints:
    """Written as ranges, one by one."""
    found: list[tuple[int, int]] = []
    for point in sorted(members):
        if found and found[-1][1] == point - 1:
            found[-1] = (found[-1][0], point)
        else:
            found.append((point, point))
    return tuple(found)


@given(MEMBERS, MEMBERS)
def test_an_intersection_has_what_is_in_both(left: set[int], right: set[int]) -> None:
    assert points.intersection(ranges(left), ranges(right)) == ranges(left & right)


@given(st.lists(MEMBERS, max_size=4))
def test_a_union_has_what_is_in_any(sets: list[set[int]]) -> None:
    assert points.union(map(ranges, sets)) == ranges(set().union(*sets))


@given(MEMBERS)
def test_a_complement_has_the_rest(members: set[int]) -> None:
    outside = points.complement(ranges(members))
    assert points.complement(outside) == ranges(members)
    assert points.intersection(outside, ranges(members)) == ()
    assert points.union((outside, ranges(members))) == ((0, points.LAST),)
