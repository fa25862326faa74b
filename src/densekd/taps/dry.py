"""The dry run of one network: are the taps what their names promise?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from densekd.errors import TapError
from densekd.taps.outputs import holds_class_map, main_output
from densekd.taps.paths import find_module
from densekd.taps.reader import TapReader, fired_often


class DryRun(NamedTuple):
    """The network's own output, the map of each tap, and what the user should know."""

    output: Any
    maps: dict[str, Tensor]
    notices: list[str]


def dry_run(reader: TapReader, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DryRun:
    """One forward pass in which the reader is checked and settled.

    * The module taken for `logits` must give as many channels as the network's output; otherwise `logits`
      becomes `output`, and a notice says so.
    * A tap whose output a later module changes in place (`ReLU(inplace=True)`) is recorded as a clone from now
      on, so that it stays what the tapped module returned.

    Raises:
        TapError: a tap never fires, fires more than once, or gives no floating-point tensor.
    """
    store = reader.store
    store.versions = {}
    try:
        output, raw = reader.run_raw(network, args, kwargs)
        versions = store.versions
    finally:
        store.versions = None
    notices = _settle_logits(reader, output, raw)
    for path, hook in reader.hooks.items():
        fired = raw.get(path, [])
        if not fired:
            raise TapError(_explain_silence(network, path, reader.who, lambda: network(*args, **kwargs)))
        if len(fired) > 1:
            raise TapError(fired_often(path, reader.who, fired))
        if path in versions and fired[0]._version != versions[path]:
            hook.copy = True
            notices.append(
                f"{reader.who}: the output of {path!r} is changed in place by a later module; a copy is kept"
            )
    return DryRun(output, {tap: reader.pick(tap, output, raw) for tap in reader.names}, notices)


def _settle_logits(reader: TapReader, output: Any, raw: Mapping[str, list[Any]]) -> list[str]:
    if "logits" not in reader.names:
        return []
    path, form = reader.names["logits"].path, reader.logits_form
    if path is None:
        return [f"{reader.who}: logits equals output (no head of a known form was found)"]
    if _is_class_map(raw.get(path, []), output):
        return [f"{reader.who}: logits is the output of {path!r} ({form})"]
    reader.logits_are_output()
    return [
        f"{reader.who}: logits equals output ({path!r} looks like the {form}, but does not give the output's channels)"
    ]


def _is_class_map(fired: list[Any], output: Any) -> bool:
    if len(fired) != 1 or not isinstance(fired[0], Tensor) or not holds_class_map(output):
        return False
    found, whole = fired[0], main_output(output)
    return found.dim() == 4 and found.shape[1] == whole.shape[1]


def _explain_silence(network: nn.Module, path: str, who: str, run: Callable[[], object]) -> str:
    """Why the tap at `path` never fired, found by running once more with every module watched."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda _module, _args, _output, name=name: called.append(name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    module = find_module(network, path, who)
    kind = type(module).__name__
    called = list(dict.fromkeys(called))
    inside = [name for name in called if name.startswith(f"{path}.")]
    shallow = min((name.count(".") for name in inside), default=0)
    inside = [name for name in inside if name.count(".") == shallow]
    message = f"tap {path!r} of the {who} names a {kind} that is never called in the forward pass"
    if type(module).forward is nn.Module.forward or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        message += f": a {kind} is a container, only the modules in it are called"
    if inside:
        shown = [*inside[:4], *(["..."] if len(inside) > 5 else []), *inside[max(4, len(inside) - 1) :]]
        return (
            f"{message}; called inside it: {', '.join(repr(n) if n != '...' else n for n in shown)}; tap one of these"
        )
    parent = path.rpartition(".")[0]
    near = [name for name in called if name.rpartition(".")[0] == parent] or called
    return f"{message}; modules that are called near it: {', '.join(map(repr, near[-5:]))}; tap one of these"
