"""An auxiliary head: a second class map in training, from a stage of the network before its last.

Networks of segmentation-models-pytorch have none, and the paper's PSPNet and DeepLabV3 are trained with one: an FCN
head on the stage before the last, whose loss has weight 0.4. The head hangs on the network by hooks and is no part of
it: names, weights, parameters and evaluation of the network are what they are without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from densekd.adapters import Layout, find_layout
from densekd.errors import DensekdError, ModelError
from densekd.failures import out_of_memory
from densekd.spec import Spec
from densekd.taps import DryRun, TapReader, dry_run, main_output, preserved, training_without_norms
from densekd.teacher import Batch

_NAMES = ("aux", "auxiliary_logits")


class AuxiliarySpec(Spec):
    """An auxiliary head for training: 3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution to the classes."""

    tap: str = Field(
        min_length=1,
        description="the module it reads, for instance encoder.layer3; a short name of a network knows its own",
    )
    channels: PositiveInt | None = Field(
        default=None, description="of its hidden layer; null: a quarter of the tap's, as in torchvision and mmseg"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of its hidden channels left out at a time")


class AuxiliaryHead(nn.Sequential):
    """`(N, in_channels, h, w)` -> `(N, outputs, h, w)`, logits at the tap's size.

    As mmseg's `FCNHead` with one convolution: whole channels are dropped. torchvision's `FCNHead`, the auxiliary head
    of its DeepLabV3, has the same layers but drops single values.
    """

    def __init__(self, in_channels: int, channels: int, outputs: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, outputs, 1),
        )


class _Attachment:
    """The hooks that join a head to a network; plain objects, so that they are copied and pickled with it."""

    def __init__(self, reader: TapReader, tap: str, layout: Layout, head: AuxiliaryHead) -> None:
        self.reader, self.tap, self.layout, self.head = reader, tap, layout, head

    def before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begins to read the tap, in training mode alone; what a pass that failed has left is dropped."""
        self.reader.store.seen = {}
        self.reader.store.active = network.training

    def after(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The network's output with the head's logits beside it as `aux`; in evaluation mode untouched."""
        if not network.training:
            return None
        store = self.reader.store
        seen, store.seen, store.active = store.seen, {}, False
        images = Batch(args, kwargs).images
        tapped = self.layout.to_nchw(self.reader.pick(self.tap, output, seen), (images.shape[2], images.shape[3]))
        named = dict(output) if isinstance(output, Mapping) else {"out": main_output(output)}
        return {**named, "aux": self.head(tapped)}


def attach_auxiliary(network: nn.Module, spec: AuxiliarySpec, outputs: int, example: Tensor) -> AuxiliaryHead:
    """Make an auxiliary head on `spec.tap` and hang it on `network`.

    From now on the network gives, in training mode, a mapping with its own output (`out`, or the keys it has) and
    `aux`, which `task.auxiliary` weights; in evaluation mode nothing is changed or computed. The head is not among the
    network's modules: whoever trains it takes its parameters from `auxiliary_of(network)`.

    Args:
        network: on its device already; weights, statistics, mode and random states stay as they are.
        spec: the tap and the size.
        outputs: channels of the class map.
        example: images `(N, 3, H, W)`, one is enough; the tap's channels are found by running them.

    Raises:
        TapError: no such module (with near names), or one without a spatial map.
        ModelError: the network has an auxiliary output of its own, or a head already; the tap is its output; no
            gradient passes the tap.
    """
    if auxiliary_of(network) is not None:
        raise ModelError("auxiliary: the network has an auxiliary head already; one is enough")
    if spec.tap in ("output", "logits"):
        raise ModelError(
            f"auxiliary.tap: {spec.tap!r} is the class map itself; give a module before it, for instance encoder.layer3"
        )
    reader = TapReader(network, [spec.tap], who="student")
    try:
        found = _found(reader, network, example)
        _check(found.output, found.maps[spec.tap], spec.tap)
        tapped = found.maps[spec.tap]
        size = (example.shape[2], example.shape[3])
        layout = find_layout(tuple(tapped.shape), size, f"auxiliary.tap {spec.tap!r}")
    except BaseException:
        reader.close()
        raise
    channels = layout.to_nchw(tapped, size).shape[1]
    head = AuxiliaryHead(channels, spec.channels or max(1, channels // 4), outputs, spec.dropout)
    parameter = next(network.parameters())
    head.to(parameter.device, parameter.dtype)
    joined = _Attachment(reader, spec.tap, layout, head)
    network.register_forward_pre_hook(joined.before, with_kwargs=True)
    network.register_forward_hook(joined.after, with_kwargs=True)
    return head


def _found(reader: TapReader, network: nn.Module, example: Tensor) -> DryRun:
    try:
        with preserved(network):
            training_without_norms(network)
            return dry_run(reader, network, (example,), {})
    except DensekdError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise  # no fault of the network's
        shape = tuple(example.shape)
        raise ModelError(
            f"the network fails in training mode on images {shape}: {type(error).__name__}: {error}"
        ) from error


def _check(output: Any, tapped: Tensor, tap: str) -> None:
    own = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
    if any(isinstance(own.get(name), Tensor) for name in _NAMES):
        raise ModelError(
            "auxiliary: the network has an auxiliary output of its own, which task.auxiliary weights; leave the head "
            "out, or build the network without its own (torchvision: aux_loss=False)"
        )
    if not tapped.requires_grad:
        raise ModelError(
            f"auxiliary.tap: no gradient passes {tap!r}: everything before it is frozen, so the head would teach the "
            "network nothing"
        )


def auxiliary_map(output: Any) -> Tensor | None:
    """The auxiliary class map: torchvision's `{"aux": ...}`, or `auxiliary_logits` of an output; None where none is."""
    found = output.get("aux", output.get("auxiliary_logits")) if isinstance(output, Mapping) else None
    return getattr(output, "auxiliary_logits", None) if found is None else found


def auxiliary_of(network: nn.Module) -> AuxiliaryHead | None:
    """The head that hangs on `network`, also on a deep copy of it (a copy of the head); None where there is none."""
    for hook in network._forward_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, _Attachment):
            return owner.head
    return None
