from __future__ import annotations

import math

import pytest

from densekd.errors import ArgumentError
from densekd.teacher_cache import CacheKey


class TestDigest:
    def test_is_of_the_values_alone(self):
        one = CacheKey({"a": 1, "b": {"c": (1, 2), "d": None}})
        other = CacheKey({"b": {"d": None, "c": [1, 2]}, "a": 1})
        assert one == other
        assert one.digest == other.digest
        assert hash(one) == hash(other)
        # sha256 of {"a":1}
        assert CacheKey({"a": 1}).digest == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"

    @pytest.mark.parametrize(
        "other", [{"a": 2}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": 1, "b": None}, {"b": 1}, {}]
    )
    def test_another_value_is_another_key(self, other):
        assert CacheKey({"a": 1}).digest != CacheKey(other).digest

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"a": {"b": math.nan}}, r"CacheKey: a\.b: expected .* got nan"),
            ({"a": [1, object()]}, r"CacheKey: a\[1\]: expected"),
            ({"a": {1: 2}}, "names must be texts, got 1 under 'a'"),
            ([1], "expected a mapping of names to values, got a list"),
        ],
    )
    def test_refused(self, values, words):
        with pytest.raises(ArgumentError, match=words):
            CacheKey(values)


class TestDifferences:
    def test_in_words(self):
        here = CacheKey({"data": {"augment": {"flip": 0.0}}, "taps": ["a"], "terms": [{"t": 1}], "size": None})
        there = CacheKey({"data": {"augment": {"flip": 0.5}}, "taps": ["b"], "terms": [{"t": 2}], "views": 4})
        assert here.differences(there) == [
            "data.augment.flip: 0.5 there, 0.0 here",
            "size: absent there, null here",
            'taps: ["b"] there, ["a"] here',
            "terms.0.t: 2 there, 1 here",
            "views: 4 there, absent here",
        ]
        assert here.differences(here) == []

    def test_types_tell(self):
        assert CacheKey({"a": 1}).differences(CacheKey({"a": True})) == ["a: true there, 1 here"]
        assert CacheKey({"a": "1"}).differences(CacheKey({"a": 1})) == ["a: 1 there, '1' here"]

    def test_long_values_are_cut(self):
        (words,) = CacheKey({"a": "x" * 500}).differences(CacheKey({"a": 1}))
        assert len(words) < 120
        assert "(502 characters)" in words
