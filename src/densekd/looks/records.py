"""What is in the JSON files under `looks/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from densekd.files import is_temporary
from densekd.records.base import Record, dump

FOLDER = "looks"
"""Folder of a run for what is kept of its networks to be looked at."""
BESIDE = "beside"
"""Folder inside that one, of a distilled run, that shows it beside the student alone, a folder for each such run."""


def besides(run: Path) -> list[Path]:
    """Folders in which the run in `run` is shown beside a student alone; an earlier version kept a single one."""
    folder = run / FOLDER / BESIDE
    found = [folder, *sorted(path for path in folder.glob("*") if path.is_dir() and not is_temporary(path.name))]
    return [path for path in found if any((path / name).is_file() for name in ("pictures.json", "maps.json"))]


def as_file(record: BaseModel) -> bytes:
    """The bytes of a record's JSON file; NaN and infinities are refused (they are not JSON)."""
    return (json.dumps(dump(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


class _File(Record):
    schema_version: Literal[1] = Field(default=1, alias="schema")

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ImageScore(Record):
    """One image's own scores: the mean is over the classes in its truth or prediction."""

    name: str
    miou: float | None = Field(description="null: nothing in it is labelled")
    accuracy: float | None


class ScoredImages(Record):
    """All images of a split, in their order, under the weights of one step."""

    step: int
    images: list[ImageScore]


class ImagesFile(_File):
    """`images.json`: the images of `val` by the newest and the best evaluation."""

    split: str = "val"
    final: ScoredImages | None = None
    best: ScoredImages | None = None


class Answer(Record):
    """What one network says about one image."""

    file: str
    miou: float | None = None
    accuracy: float | None = None


class PictureRow(Record):
    """One image: its files are in `pictures.safetensors`; pixels of label maps are class ids, void is their number."""

    index: int
    name: str
    why: str
    width: int = Field(description="of the image as it is stored in the data set")
    height: int
    image: str
    truth: str
    answers: dict[str, Answer] = Field(description="by network")


class PicturesFile(_File):
    """`pictures.json`: the images that were chosen, and what the networks say about them."""

    split: str = "val"
    rule: str
    classes: list[str]
    palette: list[tuple[int, int, int]]
    networks: dict[str, str] = Field(description="key in `answers`: what the network is")
    rows: list[PictureRow]
    runs: dict[str, str] = Field(default_factory=dict, description="by network, where they are of several runs: whose")
    weights: dict[str, str] = Field(default_factory=dict, description="sha256 of their students' files")
    notes: list[str] = Field(default_factory=list, description="what is missing, and why")


class MapImage(Record):
    """An image whose maps are shown."""

    index: int
    name: str
    file: str


class ShownChannel(Record):
    """A channel that is shown, on one image: the numbers are of that image alone."""

    channel: int
    image: int = Field(description="place in `images`")
    low: float = Field(description="multiple of the even share that has the darkest colour, for all networks")
    high: float = Field(description="that has the brightest")
    entropy: dict[str, float]
    kl: dict[str, float]


class TermMaps(Record):
    """The maps of one term; lists have a number per channel, the mean over the images."""

    name: str
    method: str
    student: str = Field(description="tap")
    teacher: str = Field(description="tap")
    temperature: float
    softens: bool = Field(description="whether the term's own loss softens over positions at this temperature")
    size: tuple[int, int]
    log_positions: float = Field(description="entropy of an even map, in nats; the mean over the images")
    channels: list[str]
    entropy: dict[str, list[float]] = Field(description="nats, by network: teacher, before, after")
    kl: dict[str, list[float]] = Field(description="nats, of the teacher from: before, after")
    shown: list[ShownChannel]


class MapsFile(_File):
    """`maps.json`: softened maps of teacher and student; their planes are in `maps.safetensors`.

    A plane is called `TERM.CHANNEL.NETWORK`, the term by its place.
    """

    split: str = "val"
    rule: str
    networks: dict[str, str] = Field(description="key of numbers and maps: what the network is")
    images: list[MapImage]
    terms: list[TermMaps]
    notes: list[str] = Field(default_factory=list, description="what is missing, and why")
