"""Canonical JSON against canonicaljson-rs, with which Mozilla's server signs."""

from typing import Any

import canonicaljson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pywebml.settings.canonical_json import LARGEST_INTEGER, canonical_json

RECORDS = 40
EXAMPLES = 500
"""20,000 records: each example is a collection of 40, since most of an example's time is not spent on its values."""

# Every code point that is no surrogate, with those that are spelled in their own way drawn more often.
CHARACTERS = st.one_of(
    st.sampled_from('"\\/\b\f\n\r\t\x00\x1f\x7f\x80é\u2028\u2029\ud7ff\ue000\uffff\U00010000\U0001f600\U0010ffff'),
    st.characters(exclude_categories=["Cs"]),
)
TEXT = st.text(CHARACTERS, max_size=8)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-LARGEST_INTEGER, LARGEST_INTEGER), TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
RECORD = st.dictionaries(TEXT, VALUES, max_size=4)


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.lists(RECORD, min_size=RECORDS, max_size=RECORDS))
def test_twenty_thousand_records_are_spelled_as_the_server_spells_them(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert canonical_json(record) == canonicaljson.dumps(record).encode()
    assert canonical_json(records) == canonicaljson.dumps(records).encode()
