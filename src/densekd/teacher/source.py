"""What a teacher is to the distiller: something that gives maps for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from densekd.errors import ArgumentError


class Batch(NamedTuple):
    """The arguments of one forward pass, as the networks get them.

    Attributes:
        args, kwargs: positional and by keyword.
        samples: int64 `(N, 2)`, for each image which view of which image of the data set it is (view, index); a source
            that has stored its maps looks them up by it. None where nobody says; the networks never get it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """The images `(N, C, H, W)`: the first positional argument, or `pixel_values`.

        Raises:
            ArgumentError: there are none, or they are no such tensor.
        """
        images = self.args[0] if self.args else self.kwargs.get("pixel_values")
        if not isinstance(images, Tensor) or images.dim() != 4:
            came = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ArgumentError(
                "expected images, a tensor (N, C, H, W), as the first positional argument or as pixel_values; "
                f"got {came}"
            )
        return images

    def with_images(self, images: Tensor) -> Batch:
        """The same arguments with other images.

        Args:
            images: `(N, C, H, W)`.
        """
        if self.args:
            return self._replace(args=(images, *self.args[1:]))
        return self._replace(kwargs={**self.kwargs, "pixel_values": images})


def as_batch(example: Any) -> Batch:
    """The example as the arguments of a forward pass: a tensor, a tuple of arguments, or a dict of keywords.

    Raises:
        ArgumentError: none of these, or without images.
    """
    if isinstance(example, Tensor):
        batch = Batch((example,), {})
    elif isinstance(example, Mapping):
        batch = Batch((), dict(example))
    elif isinstance(example, (tuple, list)):
        batch = Batch(tuple(example), {})
    else:
        raise ArgumentError(
            "example must be a tensor of images, a tuple of positional arguments or a dict of keyword arguments, "
            f"got a {type(example).__name__}"
        )
    if batch.images.shape[0] < 1:
        raise ArgumentError(f"example holds no image: its shape is {tuple(batch.images.shape)}")
    return batch


@runtime_checkable
class TeacherSource(Protocol):
    """Anything that gives the teacher's maps: a live network, a cache, a wrapper.

    A source that also has `_apply(fn)`, as every `nn.Module` has, follows the distiller's `.to()`; one with
    `train(mode)` is told `train(False)` whenever the distiller changes its mode; one with `close()` is closed.

    What a source with stored maps may say of itself:

    * `needs_images = False`: its maps come from `batch.samples`; the images are not prepared for it (`TeacherInput`).
    * `example(batch)`: maps for the distiller's dry run, whose images need not be in the store; else `maps` is asked.
    * `nchw = True`: every map is `(N, C, H, W)`; the distiller need not find out how to read it.
    * `class_taps`: the taps known to be class maps; without it `logits` and `output` are.
    * `classes`: how many classes they have.
    * `notices`: lines for the distiller's own.

    One with `submit(batch)` is asked by it, before the student runs: it starts the work and returns what waits for the
    maps and gives them.

    >>> class Noise:
    ...     def maps(self, batch):
    ...         return {"output": torch.rand(batch.images.shape[0], 5, 8, 8)}
    >>> isinstance(Noise(), TeacherSource)
    True
    """

    def maps(self, batch: Batch) -> Mapping[str, Tensor]:
        """`{tap: map}` for one batch; the maps carry no gradient.

        Args:
            batch: what the networks get.
        """
        ...
