"""An exported file against the network in torch, on real images, other batches and other sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.errors import DensekdError, ExportError
from densekd.export.exported import Exported
from densekd.export.feed import Feed
from densekd.export.graph import Graph
from densekd.export.manifest import OutputKind, Size, Verified
from densekd.export.sizes import in_words, plain

# Of the largest logit. Sums in another order differ by some 1e-6 of it; a wrong operator by 1e-3 and more.
_TOLERANCE = 1e-4


class WrongExportError(ExportError):
    """The file gives something else than the network, or fails, at one size of images.

    Attributes:
        size: height and width.
    """

    def __init__(self, text: str, size: Size) -> None:
        super().__init__(text)
        self.size = size


@dataclass
class Comparison:
    """Adds up what batches show.

    Args:
        kind: what the file gives.
        binary: one logit for two classes.
    """

    kind: OutputKind
    binary: bool
    error: float = 0.0
    pixels: int = 0
    undecided: int = 0
    different: int = 0
    sizes: list[Size] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(self, found: Tensor, expected: Tensor, logits: Tensor, size: Size) -> None:
        """Compare what the file gave for a batch with what torch gave.

        Args:
            found, expected: outputs of the file and of the graph in torch.
            logits: of the graph in torch, `(N, K, H, W)`.
            size: of the images.

        Raises:
            WrongExportError: another shape or type; or an error or another class than rounding explains.
        """
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise WrongExportError(
                f"for images of {in_words(size)} it gives {_described(found)}, torch {_described(expected)}", size
            )
        scale = float(logits.abs().max())
        allowed = _TOLERANCE * (scale if self.kind == "logits" else max(1.0, scale))
        margin = allowed
        if self.kind != "argmax":
            error = float((found.double() - expected.double()).abs().max())
            if not error <= allowed:  # also where it is no number
                raise WrongExportError(
                    f"for images of {in_words(size)} its {self.kind} differ from torch's by {error:.3g}, which "
                    f"rounding does not explain (the largest logit is {scale:.3g})",
                    size,
                )
            self.error, margin = max(self.error, error), 2 * error
        ids, truth = _ids(found, self.kind, self.binary), _ids(expected, self.kind, self.binary)
        apart = gap(logits if self.kind == "argmax" else expected, self.kind, self.binary)
        close = apart <= margin
        wrong = int(((ids != truth) & ~close).sum())
        if wrong:
            raise WrongExportError(
                f"for images of {in_words(size)} it gives another class than torch at {wrong} of {ids.numel()} "
                "pixels that are not close",
                size,
            )
        self.different += int((ids != truth).sum())
        self.undecided += int(close.sum())
        self.pixels += ids.numel()
        for value, into in ((size, self.sizes), (len(found), self.batches)):
            if value not in into:
                into.append(value)  # type: ignore[arg-type]

    def verified(self, images: int, words: str, by: str) -> Verified:
        """What the manifest says of it."""
        return Verified(
            max_abs_error=None if self.kind == "argmax" else self.error,
            argmax_agreement=1.0,
            undecided=self.undecided,
            different=self.different,
            pixels=self.pixels,
            images=images,
            of=words,
            sizes=self.sizes,
            batches=sorted(self.batches),
            by=by,
        )


def compare(
    graph: Graph,
    file: Exported,
    images: Sequence[Tensor],
    others: Sequence[Size],
    watch: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run both on every image by itself, on two and three of them at a time, and on other sizes.

    Args:
        images: as they are stored, uint8 `(3, H, W)`.
        others: heights and widths that images are resized to as well.
        watch: called with (batches done, batches in all).

    Raises:
        WrongExportError: the file fails, or gives something else than torch.
    """
    feed = Feed(file.manifest)
    batches = [feed(image)[None] for image in images]
    first = batches[0]
    more = [batch for batch in batches if batch.shape == first.shape]
    batches += [torch.cat([more[place % len(more)] for place in range(count)]) for count in (2, 3)]
    for number, size in enumerate(others):
        image = images[number % len(images)][None].float()
        resized = F.interpolate(image, size, mode="bilinear", antialias=True)[0]
        batches.append(torch.stack([feed.pixels(resized), feed.pixels(resized.flip(-1))]))
    comparison = Comparison(file.manifest.inside.output, file.manifest.binary)
    for done, batch in enumerate(batches):
        if watch is not None:
            watch(done, len(batches))
        size = (int(batch.shape[-2]), int(batch.shape[-1]))
        with torch.inference_mode():
            expected, logits = graph(batch), graph.logits(batch)
        try:
            found = file(batch)
        except DensekdError:
            raise
        except Exception as error:  # onnxruntime has a class of its own for every reason
            raise WrongExportError(f"for images of {in_words(size)} it fails: {plain(str(error))}", size) from error
        comparison.add(found, expected, logits, size)
    if watch is not None:
        watch(len(batches), len(batches))
    return comparison


def _ids(output: Tensor, kind: OutputKind, binary: bool) -> Tensor:
    if kind == "argmax":
        return output
    if binary:
        return (output[:, 0] > (0.5 if kind == "softmax" else 0.0)).long()
    return output.argmax(1)


def gap(output: Tensor, kind: OutputKind, binary: bool) -> Tensor:
    """How far apart the two best classes of each pixel are, in units of the output (of logits for class ids)."""
    if binary:
        # Twice the distance from the threshold: that is where the other class's value lies.
        return 2 * (output[:, 0] - (0.5 if kind == "softmax" else 0.0)).abs()
    best = output.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
