"""Patterns of names that are left alone when weights are loaded: what they match, and what they leave as it was."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from densekd.errors import CheckpointError, nearest


class Ignored:
    """The patterns of `ignore`, and which of them matched anything."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self._matched: set[str] = set()

    def __call__(self, *names: str) -> bool:
        """Whether a tensor with these names (in the file, without a prefix) is left alone."""
        matching = [pattern for pattern in self.patterns if any(fnmatchcase(name, pattern) for name in names)]
        self._matched.update(matching)
        return bool(matching)

    def require_use(self, where: str, names: Iterable[str]) -> None:
        """Refuse a pattern that matched nothing: what it was meant for would be loaded, or fail to fit.

        Raises:
            CheckpointError: there is one; the nearest of `names` are given.
        """
        idle = [pattern for pattern in self.patterns if pattern not in self._matched]
        if not idle:
            return
        known = list(dict.fromkeys(names))
        parts = [name.split(".") for name in known]
        inside = dict.fromkeys(".".join(part[:depth]) + ".*" for part in parts for depth in range(1, len(part)))
        tops = list(dict.fromkeys(part[0] for part in parts))
        more = ", ..." if len(tops) > 8 else ""
        hint = nearest(idle[0], [*inside, *known]) or f"; names begin with: {', '.join(tops[:8])}{more}"
        raise CheckpointError(f"{where}: ignore {idle[0]!r} matches no name in the file or the network{hint}")

    def kept(self, network: nn.Module, names: Iterable[str]) -> str:
        """How many of the network's own tensors are left as they were, by which pattern; empty where none are.

        Each tensor is counted under the first pattern that matches it.
        """
        sizes = {name: value.numel() for name, value in network.named_parameters(remove_duplicate=False)}
        found: dict[str, list[int]] = {pattern: [] for pattern in self.patterns}
        for name in names:
            pattern = next((pattern for pattern in self.patterns if fnmatchcase(name, pattern)), None)
            if pattern is not None:
                found[pattern].append(sizes.get(name, 0))
        each = [f"{pattern}: {len(of)} tensors ({sum(of):,} parameters)" for pattern, of in found.items() if of]
        return f"initial values are kept by ignore {', '.join(each)}" if each else ""
