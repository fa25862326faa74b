"""Every kind of data set that a recipe may name."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from densekd.data.benchmarks.ade20k import Ade20kSpec
from densekd.data.benchmarks.camvid import CamVidSpec
from densekd.data.benchmarks.cityscapes import CityscapesSpec
from densekd.data.benchmarks.cocostuff import CocoStuffSpec
from densekd.data.benchmarks.voc import VocSpec
from densekd.data.specs import FolderSpec, ScenesDataSpec

FilesSpec = FolderSpec | CityscapesSpec | VocSpec | Ade20kSpec | CamVidSpec | CocoStuffSpec
"""Kinds whose images are files."""

AnyDataSpec = FilesSpec | ScenesDataSpec

DATA_NAMES: tuple[str, ...] = tuple(kind.model_fields["name"].default for kind in get_args(AnyDataSpec))
"""What a recipe's `data.name` may be."""

DataSpec = Annotated[AnyDataSpec, Field(discriminator="name")]
