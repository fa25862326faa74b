"""What to say when names or shapes in a file do not fit the network, with the likely cause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from densekd.models.checkpoint_keys import suggest_prefix

_SHOWN = 4
# The first convolution of a ResNet: one of 7x7, or a sequence of three of 3x3 ("deep stem").
_PLAIN_STEM = re.compile(r"(^|\.)conv1\.weight$")
_DEEP_STEM = re.compile(r"(^|\.)(conv1\.[036]\.weight|stem\.\d+\.weight)$")


def explain_misfit(where: str, needed: Sequence[str], present: Sequence[str]) -> str:
    """The message for names that are missing in the file or unexpected in the network."""
    missing = [name for name in needed if name not in set(present)]
    unexpected = [name for name in present if name not in set(needed)]
    parts = [f"{where} does not fit the network ({len(set(needed) & set(present))} of {len(needed)} names fit)"]
    if missing:
        parts.append(f"{len(missing)} missing in the file: {_listed(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} the network does not have: {_listed(unexpected)}")
    return "; ".join([*parts, _cause(needed, present, missing, unexpected)])


def explain_shapes(where: str, wrong: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
    """The message for tensors of another shape than the network's."""
    shown = [
        f"{name} {tuple(file.shape)} in the file, {tuple(own.shape)} in the network"
        for name, (file, own) in wrong.items()
    ]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    text = f"{where}: {len(shown)} of its tensors have another shape: {', '.join(shown[:_SHOWN])}{more}"
    counts = {(file.shape[:1], own.shape[:1]) for file, own in wrong.values()}
    alike = all(file.shape[1:] == own.shape[1:] for file, own in wrong.values())
    if alike and len(counts) == 1 and len(wrong) <= _SHOWN:
        [(theirs, ours)] = counts
        layer = next(iter(wrong)).rpartition(".")[0]
        return (
            f"{text}; the file is for {theirs[0]} classes, the network has {ours[0]}: use data of the same classes, or "
            f"leave the last layer untrained with ignore: [{layer}.*]; a teacher's own classes: teacher.class_names"
        )
    return f"{text}; the file is for a network of another size: check model and options"


def _cause(needed: Sequence[str], present: Sequence[str], missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if not present:
        return "nothing is left of the file once ignore is applied"
    extra, lacking = suggest_prefix(present, set(needed))
    if extra:
        return f"wrong prefix: try strip_prefix: {extra}"
    if lacking:
        return (
            f"the file holds only what the network calls {lacking}*: if it is an encoder (backbone), "
            f"give it as encoder_checkpoint"
        )
    if not missing:
        return f"if they are meant to be left out: ignore: [{_pattern(unexpected)}]"
    if _stems_differ(needed, present):
        return "the stems differ (one 7x7 convolution against three of 3x3): choose the other kind of ResNet as encoder"
    if not unexpected:
        return (
            f"the file is for a smaller network, or holds only a part: ignore: [{_pattern(missing)}] leaves the "
            f"missing ones untrained"
        )
    return "the file is for another network: check model and options"


def _stems_differ(needed: Sequence[str], present: Sequence[str]) -> bool:
    def stem(names: Sequence[str]) -> tuple[bool, bool]:
        # Residual blocks have a conv1 too; a stem lies outside of the numbered layers.
        outside = [name for name in names if "layer" not in name]
        return any(map(_PLAIN_STEM.search, outside)), any(map(_DEEP_STEM.search, outside))

    (plain_a, deep_a), (plain_b, deep_b) = stem(needed), stem(present)
    return (plain_a and deep_b and not plain_b) or (deep_a and plain_b and not plain_a)


def _pattern(names: Sequence[str]) -> str:
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return ", ".join(f"{top}.*" for top in tops[:3])


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
