"""How much of the last steps was spent waiting for images, for progress lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from densekd.training.stepper import StepResult

_KEPT = 0.95
_SHOWN = 0.05


class Waiting:
    """The share over about the last twenty steps."""

    def __init__(self) -> None:
        self._seconds = self._waited = 0.0

    def after(self, result: StepResult) -> str:
        """The words that follow a progress line after this step; empty where next to nothing was waited for."""
        self._seconds = _KEPT * self._seconds + result.seconds
        self._waited = _KEPT * self._waited + result.data_wait
        share = self._waited / self._seconds if self._seconds else 0.0
        return f"  data wait {share:.0%}" if share >= _SHOWN else ""
