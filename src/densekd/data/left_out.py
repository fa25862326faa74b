"""Files that the check finds unusable: one error for all of them, or left out and listed (`data.on_error`).

What is left out is settled before the work starts and follows from the files alone: not from workers, their order, or
where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from densekd.data.check import complain
from densekd.data.specs import OnError
from densekd.errors import DataError

Thing = TypeVar("Thing")
Found = TypeVar("Found")

MOST = 0.01
"""More than this share of a split is a mistake about the data set, and no few bad files."""
_SHOWN = 10


@dataclass(frozen=True)
class LeftOut:
    """What is not used of a split.

    Attributes:
        of: files, or pairs of them, that the split has.
        problems: a line for each that is left out, in their order.
    """

    of: int
    problems: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many are left out."""
        return len(self.problems)


def allowed(count: int) -> int:
    """How many of so many may be left out: 1%, rounded down."""
    return int(MOST * count)


def settle(
    splits: Mapping[str, Sequence[Thing]], seen: Mapping[Thing, Found | DataError], on_error: OnError, what: str
) -> dict[str, LeftOut]:
    """Which splits lose files, and why.

    Args:
        splits: all that was opened, by split.
        seen: what each was found to be, or what is wrong with it.
        on_error: stop at anything that is wrong, or at more than 1% of a split.
        what: they are, for the error.

    Raises:
        DataError: something is wrong, and it stops.
    """
    bad = {name: [str(seen[one]) for one in of if isinstance(seen[one], DataError)] for name, of in splits.items()}
    if on_error == "stop":
        problems = list(dict.fromkeys(problem for lines in bad.values() for problem in lines))
        complain(problems, len(seen), what + _way_out(splits, bad))
        return {}
    over = [name for name, lines in bad.items() if len(lines) > allowed(len(splits[name]))]
    if over:
        said = "; ".join(f"{name}: {len(bad[name])} of {len(splits[name])}" for name in over)
        listed = list(dict.fromkeys(problem for name in over for problem in bad[name]))
        complain(listed, sum(len(splits[name]) for name in over), f"{what} (more than 1% of a split: {said})")
    return {name: LeftOut(len(splits[name]), tuple(lines)) for name, lines in bad.items() if lines}


def _way_out(splits: Mapping[str, Sequence[Thing]], bad: Mapping[str, Sequence[str]]) -> str:
    """A hint at `data.on_error`, where it would let the work start."""
    few = all(len(lines) <= allowed(len(splits[name])) for name, lines in bad.items())
    return " (data.on_error=skip leaves them out)" if few else ""


def in_words(left_out: Mapping[str, LeftOut]) -> list[str]:
    """Lines for the user: how many of each split, what that means, and which."""
    found = []
    for name, one in left_out.items():
        scored = "" if name in ("train", "unlabelled") else f"; scores on {name} are of the other {one.of - one.count}"
        heading = f"{name}: {one.count} of {one.of} left out, whose files cannot be used (data.on_error: skip)"
        found.append(heading + scored)
        found += [f"{name}: left out: {problem}" for problem in one.problems[:_SHOWN]]
        if one.count > _SHOWN:
            found.append(f"{name}: left out: and {one.count - _SHOWN} more; `densekd data check --all` lists all")
    return found
