"""Forward hooks that record the tapped maps, only while a forward pass of the reader is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from densekd.errors import TapError
from densekd.taps.outputs import describe, floating, item_of, main_output
from densekd.taps.paths import TapName, find_module, logits_candidate, parse


class Store:
    """Where the hooks of one network leave what they saw; empty unless a forward pass is under way."""

    def __init__(self) -> None:
        self.active = False
        self.seen: dict[str, list[Any]] = {}
        # in the dry run alone: the version counter of each tapped tensor when its module returned it
        self.versions: dict[str, int] | None = None


class TapHook:
    """A forward hook as a plain object: it can be copied and pickled together with its network and store.

    With `copy` it records a clone, for a module whose output is changed in place by a later one.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        self.path = path
        self.copy = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # Outside a forward pass of the reader (evaluation, recomputation of a checkpointed segment in the
        # backward pass) nothing is kept.
        if self.store.active:
            kept = output.clone() if self.copy and isinstance(output, Tensor) else output
            self.store.seen.setdefault(self.path, []).append(kept)
            if self.store.versions is not None and isinstance(kept, Tensor):
                self.store.versions[self.path] = kept._version


class TapReader:
    """Reads the taps of one network.

    Args:
        network: its modules get the hooks; the reader keeps no reference to it.
        taps: tap names.
        who: "student" or "teacher", for messages.

    Raises:
        TapError: a tap names no module or lies in a compiled one.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
    >>> reader = TapReader(network, ["0", "output"])
    >>> output, maps = reader.run(network, (torch.rand(1, 3, 4, 4),), {})
    >>> {tap: tuple(found.shape) for tap, found in maps.items()}
    {'0': (1, 8, 4, 4), 'output': (1, 5, 4, 4)}
    >>> reader.close()
    """

    def __init__(self, network: nn.Module, taps: Iterable[str], who: str = "network") -> None:
        self.who = who
        self.names: dict[str, TapName] = {tap: parse(tap) for tap in taps}
        self.logits_form: str | None = None
        if "logits" in self.names:
            path, self.logits_form = logits_candidate(network) or (None, None)
            self.names["logits"] = TapName(path, None)
        self.store = Store()
        self.hooks: dict[str, TapHook] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._closed = False
        paths = dict.fromkeys(name.path for name in self.names.values() if name.path is not None)
        modules = {path: find_module(network, path, who) for path in paths}
        for path, module in modules.items():
            self.hooks[path] = TapHook(self.store, path)
            self._handles[path] = module.register_forward_hook(self.hooks[path])

    def logits_are_output(self) -> None:
        """Read `logits` at the network's own output from now on."""
        path = self.names["logits"].path
        self.names["logits"] = TapName(None, None)
        self.logits_form = None
        if path is not None and all(name.path != path for name in self.names.values()):
            self._handles.pop(path).remove()
            del self.hooks[path]

    def close(self) -> None:
        """Remove the hooks. Reading afterwards is an error."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._closed = True

    def run(
        self,
        network: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        taps: Iterable[str] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """One forward pass: the network's own output, untouched, and the map of every tap (or of `taps`).

        Args:
            network: the one whose modules have the hooks, or what wraps it.
            args, kwargs: its arguments.
            taps: those to give; default: all.

        Raises:
            TapError: the reader is closed; a tap never fired, fired more than once, or gave no tensor.
        """
        output, raw = self.run_raw(network, args, kwargs)
        wanted = self.names if taps is None else taps
        return output, {tap: self.pick(tap, output, raw) for tap in wanted}

    def run_raw(
        self, network: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, list[Any]]]:
        """One forward pass: the network's own output and, by path, everything the hooks saw.

        Args:
            network: the one whose modules have the hooks, or what wraps it.
            args, kwargs: its arguments.

        Raises:
            TapError: the reader is closed.
        """
        if self._closed:
            raise TapError(f"the hooks of the {self.who} were removed by close(); build a new Distiller")
        store = self.store
        store.active = True
        try:
            output = network(*args, **kwargs)
            raw = store.seen
        finally:
            store.active = False
            store.seen = {}
        return output, raw

    def pick(self, tap: str, output: Any, raw: Mapping[str, list[Any]]) -> Tensor:
        """The map of one tap from what `run_raw` returned.

        Args:
            tap: one of the reader's.
            output, raw: what `run_raw` returned.

        Raises:
            TapError: as `run`.
        """
        name = self.names[tap]
        if name.path is None:
            return floating(main_output(output), tap) if name.item is None else item_of(output, name.item, tap)
        fired = raw.get(name.path, [])
        if len(fired) == 1:
            return item_of(fired[0], name.item, tap)
        if not fired:
            raise TapError(
                f"tap {name.path!r} of the {self.who} was not called in this forward pass, though it was in the "
                "dry run; tap a module that every forward pass calls"
            )
        raise TapError(fired_often(name.path, self.who, fired))


def fired_often(path: str, who: str, fired: list[Any]) -> str:
    return (
        f"tap {path!r} of the {who} fired {len(fired)} times in one forward pass (first {describe(fired[0])}, last "
        f"{describe(fired[-1])}): the module is shared, so which output is meant cannot be told; tap a module "
        "before or after it that is called once"
    )
