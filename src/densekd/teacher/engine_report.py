"""What was done to make a teacher fast, what error that brought, and what time it saved."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from densekd.teacher.fidelity import MapError


@dataclass(frozen=True)
class Candidate:
    """A number format that was tried.

    Attributes:
        dtype: "float32", "bfloat16" or "float16".
        autocast: the weights stayed in float32.
        seconds: of one forward pass over the example, the fastest of several; None where it did not run.
        softened: the largest error of a tap's softened maps; None where a map was not finite.
        miou: on the held-out batches, from 0 to 1, of float32 the plain teacher's; None without labels, and where the
            softened maps err too much already.
        verdict: taken, or why not.
    """

    dtype: str
    autocast: bool
    seconds: float | None
    softened: float | None
    miou: float | None
    verdict: str


@dataclass(frozen=True)
class EngineReport:
    """A fast teacher compared with the plain float32 one on the example.

    Attributes:
        dtype, autocast: the number format it runs in; with `autocast` its weights stayed in float32.
        why: how the format was chosen.
        device: where it runs.
        folded: batch normalisations folded into the layer before them.
        left: those that were not, by path, with the reason.
        channels_last, compiled, cuda_graph: whether they are in use.
        micro_batch: images run at once at most; None for all.
        size: `(height, width)` it gets; None for the images' own.
        example: shape of the images it was measured on.
        temperature: of the softened maps.
        errors: by tap.
        agreement: share of positions with the same class; None without a class map.
        miou_plain, miou: on the held-out batches, from 0 to 1, plain and fast; None without labels. Both these and
            `agreement` are of the copy run operator by operator, also where it is compiled or a graph.
        held_out: images they were taken from.
        seconds_plain, seconds: of one forward pass over the example, the fastest of several.
        candidates: the number formats that were compared, where there was a choice.
        winograd: convolutions in Winograd's form, of the copy that is used.
        winograd_why: why float32 has them or has none; empty where it was out of the question.
        notices: what the user should know, one line each.
    """

    dtype: str
    autocast: bool
    why: str
    device: str
    folded: int
    left: dict[str, str]
    channels_last: bool
    compiled: bool
    cuda_graph: bool
    micro_batch: int | None
    size: tuple[int, int] | None
    example: tuple[int, ...]
    temperature: float
    errors: dict[str, MapError]
    agreement: float | None
    miou_plain: float | None
    miou: float | None
    held_out: int
    seconds_plain: float
    seconds: float
    candidates: tuple[Candidate, ...]
    winograd: int
    winograd_why: str
    notices: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """Seconds of the plain teacher by those of the fast one."""
        return self.seconds_plain / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Every attribute as plain values that JSON can hold, and the speed-up."""
        values = asdict(self)
        for name in ("size", "example", "candidates", "notices"):
            values[name] = None if values[name] is None else list(values[name])
        return {**values, "speedup": self.speedup}

    def rows(self) -> list[tuple[str, str]]:
        """What was done and measured, as pairs of a name and a text for a table."""
        how = "autocast, weights in float32" if self.autocast else "weights converted"
        rows = [
            ("number format", self.dtype if self.dtype == "float32" else f"{self.dtype} ({how})"),
            ("chosen because", self.why),
            ("batch norms folded", _folded_words(self.folded, self.left)),
            *self._winograd_rows(),
            ("also", ", ".join(self._also()) or "nothing"),
            ("device", self.device),
        ]
        for tap, error in self.errors.items():
            rows.append((f"error of {tap}", f"{error.maps:.2e}, softened {error.softened:.2e} (relative L2)"))
        if self.agreement is not None:
            rows.append(("same class", f"{100 * self.agreement:.2f}% of positions"))
        if self.miou is not None and self.miou_plain is not None:
            moved = 100 * (self.miou - self.miou_plain)
            rows.append(
                (
                    "mIoU",
                    f"{100 * self.miou:.2f}, plain {100 * self.miou_plain:.2f} ({moved:+.2f}; {self.held_out} images)",
                )
            )
        shape = "x".join(map(str, self.example))
        rows.append(("seconds", f"{self.seconds:.4f}, plain {self.seconds_plain:.4f} ({self.speedup:.2f}x) on {shape}"))
        return rows

    def _winograd_rows(self) -> list[tuple[str, str]]:
        if not self.winograd_why or self.dtype != "float32":
            return []
        return [("Winograd convolutions", f"{self.winograd or 'none'} ({self.winograd_why})")]

    def _also(self) -> list[str]:
        found = [
            words
            for words, there in (
                ("channels last", self.channels_last),
                ("compiled", self.compiled),
                ("CUDA graph", self.cuda_graph),
            )
            if there
        ]
        if self.micro_batch is not None:
            found.append(f"micro-batches of {self.micro_batch}")
        if self.size is not None:
            found.append(f"images of {self.size[0]}x{self.size[1]}")
        return found


def _folded_words(folded: int, left: dict[str, str]) -> str:
    if not left:
        return str(folded)
    reasons = Counter(left.values()).most_common()
    words = "; ".join(f"{count}: {reason}" for reason, count in reasons[:3])
    more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    return f"{folded}, {len(left)} left ({words}{more})"
