"""Taps: modules of a network, named by dotted path, whose outputs are read during a forward pass."""

from __future__ import annotations

from densekd.taps.dry import DryRun as DryRun
from densekd.taps.dry import dry_run as dry_run
from densekd.taps.outputs import holds_class_map as holds_class_map
from densekd.taps.outputs import main_output as main_output
from densekd.taps.paths import find_module as find_module
from densekd.taps.paths import logits_candidate as logits_candidate
from densekd.taps.preserve import preserved as preserved
from densekd.taps.preserve import training_without_norms as training_without_norms
from densekd.taps.reader import TapReader as TapReader
