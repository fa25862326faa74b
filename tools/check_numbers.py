"""Numbers in README.md and docs/ against the records they come from.

    python tools/check_numbers.py            # checks; exit code 1 names file, line, expected and found
    python tools/check_numbers.py --write    # fills marks and tables from the records

A mark is a pair of comments around the text it vouches for; it shows nothing where Markdown is rendered:

    <!-- record: demo.json methods[name=channelwise].final.mean * 100 .1f -->57.4<!-- /record -->

First the file under benchmarks/results/, `recipe:NAME` for a shipped recipe's settings, or `package:FILE` for a record
inside the package; then paths with ` + `,
` - `, ` * `, ` / ` or ` above ` between them (worked out from left to right; spaces count), then perhaps a format as in
Python's `format`. A path is made of keys with dots between; `[0]` is a place in a list, `[name=x,variant=y]` the one
entry with these values, `.#` the length of a list. `A above B` counts the places where list A is greater than list B.

A whole table comes from a record between `<!-- table: KIND FILE -->` and `<!-- /table -->` (kinds: record_tables.py).
Any other table with a mark, or with a column such as mIoU, gain or speed-up, may hold no number outside a mark;
figures that were published elsewhere say so in a comment on the line above: `<!-- published: SOURCE -->`.
Fenced code is left alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from record_marks import MARK, MarkError, Records, filled
from record_tables import KINDS

ROOT = Path(__file__).resolve().parent.parent

_TABLE = re.compile(r"<!-- table: (?P<kind>\S+) (?P<file>\S+) -->")
_TABLE_END = "<!-- /table -->"
_PUBLISHED = re.compile(r"<!-- published: \S.*-->")
_MEASURED = re.compile(r"\b(mIoU|IoU|gain|speed-up|milliseconds|ms|seconds|GFLOPs|memory)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.-])[+±-]?\d[\d.,]*")


def unmarked(row: str) -> list[str]:
    """Numbers in a row of a table that no mark vouches for; code, links' targets and comments do not count."""
    rest = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", " ", MARK.sub(" ", row))
    return _NUMBER.findall(rest)


@dataclass
class Page:
    """One Markdown file on its way through the checks."""

    name: str
    lines: list[str]
    records: Records
    written: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    marks: int = 0

    def check(self) -> None:
        """Fill `written` and `problems`."""
        at, fenced = 0, False
        while at < len(self.lines):
            line = self.lines[at]
            if line.lstrip().startswith("```"):
                fenced = not fenced
            opening = None if fenced else _TABLE.search(line)
            if opening:
                at = self._generated(at, opening)
                continue
            if not fenced:
                line = self._marks(at, line)
            self.written.append(line)
            at += 1
        self._tables()

    def _say(self, at: int, problems: list[str]) -> None:
        self.problems.extend(f"{self.name}:{at + 1}: {problem}" for problem in problems)

    def _marks(self, at: int, line: str) -> str:
        line, problems = filled(line, self.records)
        self.marks += len(MARK.findall(line))
        self._say(at, problems)
        return line

    def _generated(self, at: int, opening: re.Match[str]) -> int:
        """Check a table that is made from its record; returns the line after it."""
        end = next((i for i in range(at + 1, len(self.lines)) if self.lines[i].strip() == _TABLE_END), None)
        if end is None:
            self._say(at, [f"a table that is not closed by {_TABLE_END}"])
            self.written.append(self.lines[at])
            return at + 1
        found = self.lines[at + 1 : end]
        made = found
        try:
            made = self._made(opening["kind"], opening["file"])
        except MarkError as error:
            self._say(at, [str(error)])
        for number in range(max(len(made), len(found))):
            here, there = ([*lines, ""][min(number, len(lines))] for lines in (found, made))
            if here != there:
                self._say(at + 1 + number, [f"expected {_shown(there)}, found {_shown(here)}"])
                break
        self.marks += sum(len(MARK.findall(line)) for line in made)
        self.written += [self.lines[at], *made, self.lines[end]]
        return end + 1

    def _made(self, kind: str, file: str) -> list[str]:
        if kind not in KINDS:
            raise MarkError(f"unknown kind of table {kind!r}; there are {', '.join(KINDS)}")
        try:
            lines = KINDS[kind](file, self.records(file))
        except (KeyError, TypeError, AttributeError) as error:
            raise MarkError(f"{file} is not what a table of kind {kind!r} is made from: {error!r}") from None
        made = []
        for line in lines:
            line, problems = filled(line, self.records)
            wrong = [problem for problem in problems if not problem.startswith("expected")]
            if wrong:
                raise MarkError(wrong[0])
            made.append(line)
        return made

    def _tables(self) -> None:
        """No number outside a mark in a table of results."""
        for start, rows in tables(self.lines):
            whole = "\n".join(row for _, row in rows)
            if start and _PUBLISHED.search(self.lines[start - 1]):
                continue
            if MARK.search(whole) is None and _MEASURED.search(rows[0][1]) is None:
                continue
            for at, row in rows[2:]:
                numbers = unmarked(row)
                if numbers:
                    self._say(at, [f"{', '.join(numbers)} in a table of results without a record mark"])


def _shown(line: str) -> str:
    return repr(" ".join(re.sub(r"<!--.*?-->", "", line).split())) if line else "no more lines"


def tables(lines: list[str]) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Every table outside fenced code: its first line's place, and (place, line) of its rows, header included."""
    fenced, rows = False, list[tuple[int, str]]()
    for at, line in enumerate([*lines, ""]):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and line.lstrip().startswith("|"):
            rows.append((at, line))
            continue
        if rows:
            yield rows[0][0], rows
        rows = []


def pages(root: Path) -> list[Path]:
    """The files whose numbers are checked."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(arguments: list[str] | None = None) -> int:
    """Check (or fill) every page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Numbers in README.md and docs/ against benchmarks/results/.")
    parser.add_argument("--write", action="store_true", help="fill marks and tables from the records")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    asked = parser.parse_args(arguments)
    records = Records(asked.root / "benchmarks" / "results")
    marks, failed = 0, []
    for path in pages(asked.root):
        text = path.read_text(encoding="utf-8")
        page = Page(str(path.relative_to(asked.root)), text.split("\n"), records)
        page.check()
        if asked.write and page.written != page.lines:
            path.write_text("\n".join(page.written), encoding="utf-8")
            print(f"{page.name}: written")
            page = Page(page.name, page.written, records)
            page.check()
        marks += page.marks
        failed += page.problems
    for problem in failed:
        print(problem, file=sys.stderr)
    if failed:
        hint = "" if asked.write else "; `python tools/check_numbers.py --write` fills marks and tables"
        print(f"numbers: {len(failed)} wrong{hint}", file=sys.stderr)
        return 1
    print(f"numbers: {marks} marks agree with their records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
