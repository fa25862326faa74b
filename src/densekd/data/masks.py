"""Reading masks: the values in a file become class ids, through one table and never one after the other.

Replacing values in turn goes wrong as soon as a new id is also an old one (7 -> 0, then 0 -> 255).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densekd.data.images import open_picture, upright
from densekd.data.specs import Color, MasksSpec
from densekd.errors import ConfigError, DataError, nearest

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
IGNORE_NAME = "ignore"

# Stands for "no class" in tables, where every other integer may be an id or the ignore_index.
_UNLISTED = np.iinfo(np.int64).min
_ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_SHOWN = 8


def _listing(values: list[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(values[:_SHOWN]) + more


def colors_of(entry: Color | tuple[Color, ...]) -> tuple[Color, ...]:
    """The colours of one entry of `masks.colors`, which is one colour or several."""
    return (entry,) if isinstance(entry[0], int) else entry


def _packed(red: NDArray, green: NDArray, blue: NDArray) -> NDArray[np.int32]:
    return (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue.astype(np.int32)


def _byte_table(table: NDArray[np.int64]) -> tuple[bytes, int] | None:
    """A table of 256 ids in bytes, and the byte that stands for no class; None where they do not fit."""
    ids = set(table.tolist()) - {_UNLISTED}
    free = set(range(256)) - ids
    if not ids <= set(range(256)) or not free:
        return None
    marker = max(free)
    return np.where(table == _UNLISTED, marker, table).astype(np.uint8).tobytes(), marker


class MaskReader:
    """Reads mask files into labels of ids `0 .. K-1` and `ignore_index`.

    Args:
        spec: what the values in the files mean.
        classes: names of the K classes, in the order of their ids.
        ignore_index: label of void.
        kind: where the files are those of a benchmark, what they are and which values they hold, for messages.

    Raises:
        ConfigError: the id map or the colours name a class or an id that does not exist, one colour stands
            for two classes, or a class has no value at all.
    """

    def __init__(
        self, spec: MasksSpec, classes: tuple[str, ...], ignore_index: int, kind: tuple[str, str] | None = None
    ) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.format = spec.format
        self.kind = kind
        self._otherwise = ignore_index if spec.unlisted == "ignore" else _UNLISTED
        self._table = np.zeros(0, np.int64)
        self._keys = np.zeros(0, np.int32)
        self._bytes: tuple[bytes, int] | None = None
        if spec.colors is not None:
            self._keys, self._table = self._color_table(spec.colors)
        else:
            self._table = self._id_table(spec.id_map)
            self._bytes = _byte_table(self._table[:256])

    def _id_table(self, id_map: dict[int, int] | None) -> NDArray[np.int64]:
        count = len(self.classes)
        if id_map is None:
            id_map = {value: value for value in range(count)}
            if 0 <= self.ignore_index <= 65535:
                id_map[self.ignore_index] = self.ignore_index
        wrong = {raw: new for raw, new in id_map.items() if not (0 <= new < count or new == self.ignore_index)}
        if wrong:
            shown = _listing([f"{raw}: {new}" for raw, new in wrong.items()])
            raise ConfigError(
                f"masks.id_map: expected ids 0 to {count - 1} or the ignore_index {self.ignore_index}, got {shown}"
            )
        missing = [self.classes[i] for i in sorted(set(range(count)) - set(id_map.values()))]
        if missing:
            raise ConfigError(f"masks.id_map: no value stands for {_listing(missing)}")
        table = np.full(65536, self._otherwise, np.int64)
        table[list(id_map)] = list(id_map.values())
        return table

    def _color_table(self, colors: dict[str, Color | tuple[Color, ...]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids = {name: number for number, name in enumerate(self.classes)} | {IGNORE_NAME: self.ignore_index}
        found: dict[Color, str] = {}
        for name, entry in colors.items():
            if name not in ids:
                raise ConfigError(f"masks.colors: {name!r} is no class{nearest(name, ids)}")
            for color in colors_of(entry):
                if found.setdefault(color, name) != name:
                    raise ConfigError(f"masks.colors: {list(color)} stands for both {found[color]!r} and {name!r}")
        missing = [name for name in self.classes if name not in colors]
        if missing:
            raise ConfigError(f"masks.colors: no colour is given for {_listing(missing)}")
        keys = np.array([(r << 16) | (g << 8) | b for r, g, b in found], np.int32)
        order = np.argsort(keys)
        return keys[order], np.array([ids[name] for name in found.values()], np.int64)[order]

    def read(self, path: Path) -> Tensor:
        """The label in a mask file: int64 `(H, W)`.

        Raises:
            DataError: the file is missing, damaged, of the wrong kind, or holds values that mean no class.
        """
        return self.read_narrow(path).to(torch.int64)

    def read_narrow(self, path: Path) -> Tensor:
        """As `read`, but uint8 where the file has 8 bits and all ids and the ignore_index fit: faster to resize."""
        return torch.from_numpy(self._label(path))

    def _label(self, path: Path) -> NDArray:
        with open_picture(path) as opened:
            picture = upright(opened, path)
        if self.format == "colors":
            if picture.mode not in {"RGB", "P", "RGBA"}:
                self._refuse_official(picture.mode, path)
                raise DataError(f"{path}: masks.format is colors, but its pixels are of kind {picture.mode!r}")
            return self._from_colors(np.asarray(picture.convert("RGB")), path)
        if picture.mode not in _ONE_CHANNEL:
            self._refuse_official(picture.mode, path)
            raise DataError(
                f"{path}: masks.format is {self.format}, which needs one channel, but its pixels are of kind "
                f"{picture.mode!r}; a mask painted in colours needs masks.format=colors and masks.colors"
            )
        # A palette picture ("P") gives its indices here, which are the ids; converted it would be brightness.
        return self._from_ids(np.asarray(picture), path)

    def _refuse_official(self, mode: str, path: Path) -> None:
        """The error for pixels of another kind than the benchmark's; nothing for a folder of the user's own."""
        if self.kind is not None:
            raise DataError(f"{path}: its pixels are of kind {mode!r}; expected {self.kind[0]}: {self.kind[1]}")

    def _from_ids(self, values: NDArray, path: Path) -> NDArray:
        if values.dtype == np.bool_:
            values = values.astype(np.uint8)
        if values.dtype == np.uint8 and self._bytes is not None:
            table, unlisted = self._bytes
            # Python's own translation of bytes takes a third of the time of numpy's indexing.
            narrow = np.frombuffer(bytearray(values).translate(table), np.uint8).reshape(values.shape)
            self._refuse_unlisted(values, narrow == unlisted, path)
            return narrow
        if values.dtype not in (np.uint8, np.uint16) and values.size:
            low, high = int(values.min()), int(values.max())
            if low < 0 or high > 65535:
                raise DataError(f"{path}: values from {low} to {high}; expected 0 to 65535")
        label = self._table[values]
        self._refuse_unlisted(values, label == _UNLISTED, path)
        return label

    def _refuse_unlisted(self, values: NDArray, unlisted: NDArray[np.bool_], path: Path) -> None:
        if self._otherwise == _UNLISTED and unlisted.any():
            strange = np.unique(values[unlisted]).tolist()
            raise DataError(f"{path}: {self._complaint([str(value) for value in strange])}")

    def _from_colors(self, values: NDArray, path: Path) -> NDArray[np.int64]:
        keys = _packed(values[..., 0], values[..., 1], values[..., 2])
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        known = self._keys[places] == keys
        label = np.where(known, self._table[places], self._otherwise)
        if self._otherwise == _UNLISTED and not known.all():
            strange = np.unique(keys[~known]).tolist()
            shown = [f"[{key >> 16}, {key >> 8 & 255}, {key & 255}]" for key in strange]
            raise DataError(f"{path}: {self._complaint(shown)}")
        return label

    def _complaint(self, strange: list[str]) -> str:
        shown = _listing(strange)
        if self.kind is not None:
            what, values = self.kind
            return f"{shown}: no such value in {what}, which hold {values}; data.unlisted=ignore makes it void"
        void = "masks.unlisted=ignore makes them void"
        if self.format == "colors":
            return f"colours that are not in masks.colors: {shown}; {void}"
        if self.format == "id_map":
            return f"values that are not in masks.id_map: {shown}; {void}"
        return (
            f"label outside the range: {shown}; expected ids 0 to {len(self.classes) - 1} or the "
            f"ignore_index {self.ignore_index}; masks.format=id_map translates values, {void}"
        )
