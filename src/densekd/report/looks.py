"""Sections of a page from what a run has kept under `looks/`: pictures, and the maps that distillation works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup
from pydantic import BaseModel, ValidationError
from torch import Tensor

from densekd import files
from densekd.errors import CheckpointError, DensekdError
from densekd.looks.pictures import unpacked
from densekd.looks.records import FOLDER, MapsFile, PicturesFile, besides
from densekd.report.look_maps import maps_body
from densekd.report.look_pictures import pictures_body
from densekd.report.section import Section

R = TypeVar("R", bound=BaseModel)
_EARLIER = "this run has kept no pictures"


def run_sections(folder: Path) -> list[Section]:
    """What the run in `folder` shows of its networks. What it has not kept is said, not left out."""
    kept = folder / FOLDER
    if not kept.is_dir():
        why = f"{_EARLIER}: it is not finished, or an earlier version of densekd made it"
        return [Section("pictures", "Pictures", _soft(why))]
    found = [_pictures(kept, "pictures", "Pictures"), _maps(kept, "maps", "What distillation works on")]
    return [section for section in found if section is not None]


def study_sections(folder: Path, runs: Mapping[str, Path]) -> list[Section]:
    """The student alone and a distilled one beside each other, where a run among these has kept that.

    Args:
        folder: the study's.
        runs: the runs' folders by the name that the page gives them.
    """
    for kept in (kept for path in runs.values() for kept in besides(path)):
        if _shows_one_of(runs.values(), kept):
            found = [
                _pictures(kept, "pictures", "Where distillation changed most"),
                _maps(kept, "maps", "What distillation works on"),
            ]
            return [section for section in found if section is not None]
    why = "no pictures of these runs beside each other were kept"
    return [Section("pictures", "Where distillation changed most", _soft(why))] if runs else []


def _shows_one_of(runs: Iterable[Path], kept: Path) -> bool:
    """Whether the student alone that is shown is one of these runs' as they are now, or is not named."""
    try:
        found = _record(kept, "pictures", PicturesFile)
    except DensekdError:
        return True  # which the section says
    if found is None or "alone" not in found.runs:
        return True
    name, weights = found.runs["alone"], found.weights.get("alone")
    return any(files.as_text(run.absolute().name) == name and _student(run) in (None, weights) for run in runs)


def _student(run: Path) -> str | None:
    """SHA-256 of a run's student; None where its record does not keep it, or cannot be read: its page says that."""
    try:
        record = files.read_json(run / "record.json")
    except CheckpointError:
        return None
    return record.get("student_sha256") if isinstance(record, dict) else None


def _pictures(kept: Path, anchor: str, title: str) -> Section | None:
    try:
        read = _read(kept, "pictures", PicturesFile)
        if read is None:
            return None
        record, held = read
        return Section(anchor, title, pictures_body(record, {name: unpacked(one) for name, one in held.items()}))
    except (DensekdError, KeyError, OSError, ValueError) as error:
        return Section(anchor, title, _soft(f"the pictures under {kept} cannot be read: {error}"))


def _maps(kept: Path, anchor: str, title: str) -> Section | None:
    try:
        read = _read(kept, "maps", MapsFile)
        return None if read is None else Section(anchor, title, maps_body(*read))
    except (DensekdError, KeyError, OSError, ValueError) as error:
        return Section(anchor, title, _soft(f"the maps under {kept} cannot be read: {error}"))


def _read(kept: Path, name: str, kind: type[R]) -> tuple[R, dict[str, Tensor]] | None:
    """A record and the tensors beside it; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    record = _record(kept, name, kind)
    return None if record is None else (record, files.read_tensors(kept / f"{name}.safetensors"))


def _record(kept: Path, name: str, kind: type[R]) -> R | None:
    path = kept / f"{name}.json"
    if not path.is_file():
        return None
    try:
        return kind.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(f"{path}: not as this version writes it: {where}: {first['msg']}") from None


def _soft(words: str) -> Markup:
    return Markup('<p class="soft">{}</p>').format(words[:1].upper() + words[1:] + ".")
