"""Which taps are worth distilling, found by what a network did in one pass.

* `logits`: the class map before the last up-sampling: fewer positions, none of which merely interpolates others.
* the head's features: the map that the classifier reads.
* the last map of each stage of the encoder.

A map has one name: that of the module that makes it, or of the highest one around it that returns the same tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import nn

from densekd.inspection.watching import Identity, Output, Watched
from densekd.taps import logits_candidate

Role = Literal["logits", "head", "stage"]
Mapped = tuple[str, tuple[int, int, int, int] | None]

REASONS: dict[Role, str] = {
    "logits": "class map before the last up-sampling",
    "head": "the map that the classifier reads",
    "stage": "last map of an encoder stage",
}
_ENCODERS = ("encoder", "backbone")


class Good(NamedTuple):
    """A tap worth distilling.

    Attributes:
        tap: as a term names it: `logits`, or a module's dotted path, perhaps with an item.
        module: the module that gives it; empty for the network itself.
        role: what it is.
        shape: `(N, C, H, W)`.
    """

    tap: str
    module: str
    role: Role
    shape: tuple[int, int, int, int]


def good_taps(network: nn.Module, watched: Watched, outputs: int) -> list[Good]:
    """The taps worth distilling: encoder stages in the order of the pass, the head's features, the class map.

    Args:
        network: the same whose pass was watched.
        outputs: channels of its class map; a network with another number of them gives features alone.
    """
    names = Names(watched)
    found = [Good(tap, module_of(tap), "stage", shape) for tap, shape in _stages(network, watched, names)]
    logits, module = _logits(network, watched, outputs)
    if logits is None or logits.map is None:
        return found
    classes = Good("logits", module, "logits", logits.map)
    read = _classifier_input(watched, module, logits.identity, names)
    if read is not None and not module and read.shape[1] == outputs:
        # No head of known form, but a class map that is only enlarged afterwards.
        classes = read._replace(role="logits")
        read = _classifier_input(watched, "", names.identity(read.tap), names)
    found = [good for good in found if names.identity(good.tap) != logits.identity and good.tap != classes.tap]
    if read is not None:
        found = [*(good for good in found if good.tap != read.tap), read]
    return [*found, classes]


def module_of(tap: str) -> str:
    """The module of a tap, without the item of what it returns."""
    return tap.partition("[")[0]


def best_feature(taps: Iterable[Good]) -> Good | None:
    """The feature tap to begin with: the head's, as in the published settings, else the last stage's."""
    features = [good for good in taps if good.role != "logits"]
    return next((good for good in features if good.role == "head"), features[-1] if features else None)


class Names:
    """One name for each map of a pass."""

    def __init__(self, watched: Watched) -> None:
        self._outputs: dict[str, Output] = {}
        self._names: dict[Identity, str] = {}
        for module, seen in sorted(watched.modules.items(), key=lambda entry: entry[1].ended):
            if seen.calls != 1 or not module:
                continue
            for output in seen.outputs:
                if output.map is not None and output.item.count("[") < 2 and output.identity != watched.entry:
                    self._add(f"{module}{_item(seen.outputs, output)}", output)

    def _add(self, tap: str, output: Output) -> None:
        self._outputs[tap] = output
        known = self._names.get(output.identity)
        # Modules come as they are done: first the one that makes the map, later those around it, and those that only
        # hand it on. An item of what one of them returns is a name where there is no plainer one.
        if known is None or ("[" not in tap and ("[" in known or known.startswith(f"{tap}."))):
            self._names[output.identity] = tap

    def of(self, identity: Identity) -> tuple[str, Output] | None:
        """The map's name and what the module returned; None where no tap gives this very map."""
        tap = self._names.get(identity)
        return None if tap is None else (tap, self._outputs[tap])

    def identity(self, tap: str) -> Identity | None:
        """Which map a tap gives."""
        return self._outputs[tap].identity if tap in self._outputs else None


def _item(outputs: list[Output], output: Output) -> str:
    """The item as a tap names it; none for the one tensor of a list."""
    return "" if len(outputs) == 1 and output.item == "[0]" else output.item


def _logits(network: nn.Module, watched: Watched, outputs: int) -> tuple[Output | None, str]:
    """The class map before the last up-sampling, and the module that gives it (empty: the network's own output).

    The same rules as the distiller's: a head of known form, called once, with as many channels as the output.
    """
    whole = main_of(watched.modules[""].outputs)
    if whole is None or len(whole.shape) != 4 or whole.shape[1] != outputs:
        return None, ""
    candidate = logits_candidate(network)
    if candidate is not None:
        seen = watched.modules.get(candidate[0])
        if seen is not None and seen.calls == 1 and len(seen.outputs) == 1:
            found = seen.outputs[0]
            if not found.item and len(found.shape) == 4 and found.shape[1] == whole.shape[1]:
                return found, candidate[0]
    return whole, ""


def main_of(outputs: list[Output]) -> Output | None:
    """Of what a network returned the main tensor, as `densekd.taps.main_output` finds it."""
    by_item = {output.item: output for output in outputs}
    for item in ("", "[out]", "[logits]", "[0]"):
        if item in by_item:
            return by_item[item]
    return None


def _classifier_input(watched: Watched, module: str, target: Identity | None, names: Names) -> Good | None:
    """What the class map is made of: the input of the innermost module that returns it, as far as a tap gives that.

    None where several maps make the class map, or no module alone.
    """
    inside = [
        seen
        for name, seen in watched.modules.items()
        if (name == module or name.startswith(f"{module}." if module else ""))
        and target in [output.identity for output in seen.outputs]
        and name
    ]
    for seen in sorted(inside, key=lambda seen: seen.ended):
        named = names.of(seen.inputs[0]) if len(seen.inputs) == 1 else None
        if named is not None and named[1].map is not None:
            return Good(named[0], module_of(named[0]), "head", named[1].map)
    return None


def _stages(network: nn.Module, watched: Watched, names: Names) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Tap and shape of the last map of each stage, in the order of the pass."""
    root = _encoder(network)
    declared = [] if root is None else _declared(watched, root, names)
    chosen = declared if len(declared) > 1 else _trunk(watched, root or "", names)
    chosen.sort(key=lambda entry: watched.modules[module_of(entry[0])].ended)
    # Of neighbours with equal maps the last: some encoders return what every block gives.
    kept = [one for one, after in itertools.pairwise([*chosen, ("", None)]) if one[1] != after[1]]
    return [(tap, shape) for tap, shape in kept if shape is not None]


def _encoder(network: nn.Module) -> str | None:
    """The dotted path of the encoder, by the names that the libraries have for it."""
    prefix = getattr(network, "base_model_prefix", "")
    for name in (*_ENCODERS, prefix if isinstance(prefix, str) else ""):
        if name and isinstance(getattr(network, name, None), nn.Module):
            return name
    children = list(network.named_children())
    if len(children) == 1:
        inner = _encoder(children[0][1])
        return None if inner is None else f"{children[0][0]}.{inner}"
    return None


def _declared(watched: Watched, root: str, names: Names) -> list[Mapped]:
    """The maps that the encoder itself returns, one for each of its stages, by their names."""
    found = [names.of(output.identity) for output in watched.modules[root].outputs if _is_reduced(output, watched)]
    return list(dict.fromkeys((named[0], named[1].map) for named in found if named is not None))


def _trunk(watched: Watched, root: str, names: Names) -> list[Mapped]:
    """What the blocks that follow each other in the encoder return.

    A module with a single part, or one that is never called itself, is looked through; parts without parts of their own
    (a convolution, a normalisation) are no blocks.
    """
    returned = [watched.modules[name].outputs for name in _blocks(watched, root)]
    single = [outputs[0] for outputs in returned if len(outputs) == 1 and _is_reduced(outputs[0], watched)]
    found = [names.of(output.identity) for output in single]
    return list(dict.fromkeys((named[0], named[1].map) for named in found if named is not None))


def _blocks(watched: Watched, root: str) -> list[str]:
    children = [name for name in watched.modules if name and _parent(name) == root and _fired(watched, name)]
    if len(children) == 1:
        return _blocks(watched, children[0])
    found: list[str] = []
    for name in children:
        if watched.modules[name].calls == 0 or len(watched.modules[name].outputs) > 1:
            found += _blocks(watched, name)
        elif any(other.startswith(f"{name}.") for other in watched.modules):
            found.append(name)
    return sorted(found, key=lambda name: watched.modules[name].ended)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _fired(watched: Watched, name: str) -> bool:
    return any(
        seen.calls > 0 for other, seen in watched.modules.items() if other == name or other.startswith(f"{name}.")
    )


def _is_reduced(output: Output, watched: Watched) -> bool:
    """A map of more than one position, smaller than the image."""
    if output.map is None:
        return False
    positions = output.map[2] * output.map[3]
    return 1 < positions < watched.size[0] * watched.size[1]
