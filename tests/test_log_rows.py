"""The rows of log.csv in memory: the file that csv's own writer would make, and no more memory than it."""

from __future__ import annotations

import csv
import io
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekd.training.log_rows import LogRows

TIMES = {"seconds": "0.250000", "data_wait": "0.125000"}
CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r"), max_size=4)


@given(
    st.lists(st.dictionaries(st.sampled_from(['a, "b"', "loss", "ü"]), CELLS), min_size=1, max_size=9),
    st.integers(1, 3),
)
def test_the_file_is_that_of_csv(rows: list[dict[str, str]], block: int) -> None:
    """Columns may come late, and their values may hold commas, quotes and line breaks."""
    rows = [{**row, **TIMES} for row in rows]
    expected = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(expected, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    kept = LogRows(block)
    for row in rows:
        kept.append(row)
    assert "".join(kept.pieces()) == expected.getvalue()
    assert list(kept) == [{name: row.get(name, "") for name in columns} for row in rows]
    assert kept[-1] == kept[-1:][0] == list(kept)[-1]
    assert (len(kept), list(kept.seconds), list(kept.data_wait)) == (
        len(rows),
        *([x] * len(rows) for x in (0.25, 0.125)),
    )


@pytest.mark.parametrize("row", [{}, {"seconds": "1"}, {"seconds": "x", "data_wait": "1"}])
def test_a_row_without_its_times_is_not_taken(row: dict[str, str]) -> None:
    kept = LogRows()
    with pytest.raises((KeyError, ValueError)):
        kept.append(row)
    assert len(kept) == len(kept.seconds) == len(kept.data_wait) == 0


def test_a_row_takes_less_memory_than_in_the_file() -> None:
    kept, row = LogRows(block=50), {f"term {place}": repr(place / 7) for place in range(10)}
    kept.append({**row, **TIMES})
    tracemalloc.start()
    try:
        for number in range(500):
            kept.append({**row, **TIMES, "term 0": repr(number / 3)})
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A dict of twelve texts takes about 1,200 bytes.
    assert grown / 500 < sum(map(len, kept.pieces())) / 501


def test_no_piece_of_a_long_log_is_long() -> None:
    kept = LogRows(block=10)
    for number in range(1000):
        kept.append({"loss": repr(number / 3), **TIMES})
    assert max(map(len, kept.pieces())) < 21 * 50
    assert [kept[number]["loss"] for number in (0, 9, 10, 989, 999, -1000)] == [
        repr(number / 3) for number in (0, 9, 10, 989, 999, 0)
    ]
    with pytest.raises(IndexError):
        kept[1000]
