"""`set.json`: the one file that says a set is whole, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densekd import files
from densekd.teacher_cache.header import FORMAT, VERSION, Header, read_signed, write_signed
from densekd.teacher_cache.segment import Segment

WHOLE = "set.json"


@dataclass(frozen=True)
class SoftenedError:
    """Relative L2 error of the softened maps of one tap.

    Attributes:
        mean, max: over all samples.
    """

    mean: float
    max: float


@dataclass(frozen=True)
class Summary:
    """What a set holds so far.

    Attributes:
        whole: every sample is stored.
        samples, missing: how many are stored, and how many are not.
        bytes: of the files that hold them.
        raw_bytes: of the same maps in float32.
        error: by tap, how far softened maps are from those that were given (see `encoding.softened_error`).
        notices: what the user should know, one line each.
    """

    whole: bool
    samples: int
    missing: int
    bytes: int
    raw_bytes: int
    error: dict[str, SoftenedError]
    notices: tuple[str, ...] = ()


def place(header: Header, view: Any, index: Any) -> Any:
    """Where a sample stands among all of them: views in order, images in order within each."""
    return view * header.images + index


def summarise(header: Header, segments: Sequence[Segment], notices: Sequence[str] = ()) -> Summary:
    """Sum up segments; a sample that is stored twice counts once."""
    entries = [segment.index for segment in segments if len(segment.index)]
    if not entries:
        return Summary(False, 0, header.samples, 0, 0, {}, tuple(notices))
    joined = np.concatenate(entries)
    places = place(header, joined["view"].astype(np.int64), joined["index"].astype(np.int64))
    _, first = np.unique(places, return_index=True)
    errors = joined["maps"]["error"][first].astype(np.float64)
    return Summary(
        whole=len(first) == header.samples,
        samples=len(first),
        missing=header.samples - len(first),
        bytes=sum(segment.size for segment in segments),
        raw_bytes=header.raw_bytes(len(first)),
        error={
            tap: SoftenedError(float(errors[:, column].mean()), float(errors[:, column].max()))
            for column, tap in enumerate(header.taps)
        },
        notices=tuple(notices),
    )


def write_whole(folder: Path, header: Header, summary: Summary, segments: Sequence[Segment], world: int = 1) -> None:
    """Sweep up, and mark a set as whole. Of `world` ranks several may do it at the same time, with the same bytes."""
    files.sweep_temporaries(folder)
    own = asdict(summary)
    own.pop("notices")
    listed = [
        {
            "file": segment.path.name,
            "bytes": segment.size,
            "samples": len(segment.index),
            "index_sha256": segment.sha256,
        }
        for segment in segments
    ]
    content = {"format": FORMAT, "version": VERSION, "header_sha256": header.digest, "segments": listed, **own}
    for _ in range(world - 1):
        # each of the others may sweep the file away once before it has its name
        with suppress(FileNotFoundError):
            write_signed(folder / WHOLE, content)
            return
    write_signed(folder / WHOLE, content)


@dataclass(frozen=True)
class Whole:
    """`set.json` as read: the summary, and what each segment must be."""

    summary: Summary
    segments: tuple[dict[str, Any], ...]
    header_sha256: str


def read_whole(folder: Path) -> Whole:
    """Raises:
    CacheError: missing or damaged.
    """
    content = read_signed(folder / WHOLE)
    error = {tap: SoftenedError(**values) for tap, values in content["error"].items()}
    summary = Summary(
        **{name: content[name] for name in ("whole", "samples", "missing", "bytes", "raw_bytes")}, error=error
    )
    return Whole(summary, tuple(content["segments"]), content["header_sha256"])
