"""The benchmarks by the name that a recipe's `data.name` gives them."""

from __future__ import annotations

from densekd.data.benchmarks.ade20k import ADE20K
from densekd.data.benchmarks.benchmark import Benchmark
from densekd.data.benchmarks.camvid import CAMVID
from densekd.data.benchmarks.cityscapes import CITYSCAPES
from densekd.data.benchmarks.cocostuff import COCOSTUFF
from densekd.data.benchmarks.voc import VOC

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (CITYSCAPES, VOC, ADE20K, CAMVID, COCOSTUFF)}
