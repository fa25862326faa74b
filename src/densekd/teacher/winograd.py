"""3x3 convolutions with a quarter of the multiplications: Winograd's form, in plain torch.

A tile of 4x4 outputs needs 6x6 inputs. With `d` a tile of one input channel and `g` the 3x3 weights from it to one
output channel

    Y = A^T [ sum over input channels of (G g G^T) * (B^T d B) ] A

where `*` is entry by entry: 36 multiplications in place of 144. `G g G^T` is computed once; the sum over channels of
all tiles at once is 36 matrix products. Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, with
the points 0, +-3/4, +-3/2 and infinity, which round less than theirs (0, +-1, +-2): the error stays that of float32.

A convolution of dilation d is d x d plain ones over every d-th row and column.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4
_WIDE = TILE + 2
#: entries of a tile in Winograd's form, one matrix product each
PRODUCTS = _WIDE * _WIDE
# Tiles worked on at once: enough for the matrix products to run at full speed, few enough to stay in a cache.
_TILES = 256

# Lists, not tensors: importing this module must not allocate one (host_memory).
# Powers of the points; their last column is the point at infinity.
_OUT = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0.0],
    [0.0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0.0],
    [0.0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1.0],
]
# Row i: the coefficients of the polynomial that is zero at every point but the i-th. All are exact in float32.
_IN = [
    [81 / 64, 0.0, -45 / 16, 0.0, 1.0, 0.0],
    [0.0, -27 / 16, -9 / 4, 3 / 4, 1.0, 0.0],
    [0.0, 27 / 16, -9 / 4, -3 / 4, 1.0, 0.0],
    [0.0, -27 / 32, -9 / 16, 3 / 2, 1.0, 0.0],
    [0.0, 27 / 32, -9 / 16, -3 / 2, 1.0, 0.0],
    [0.0, 81 / 64, 0.0, -45 / 16, 0.0, 1.0],
]
# Row i: powers of the i-th point, divided by the value of its polynomial there.
_WEIGHT = [
    [64 / 81, 0.0, 0.0],
    [-128 / 243, -32 / 81, -8 / 27],
    [-128 / 243, 32 / 81, -8 / 27],
    [32 / 243, 16 / 81, 8 / 27],
    [32 / 243, -16 / 81, 8 / 27],
    [0.0, 0.0, 1.0],
]


def winograd_weight(weight: Tensor) -> Tensor:
    """`G g G^T` of weights `(K, C, 3, 3)`, computed in float64: float32 `(36, C, K)`, four times their memory."""
    outputs, inputs = weight.shape[:2]
    points = torch.tensor(_WEIGHT, dtype=torch.float64, device=weight.device)
    form = torch.einsum("ia,kcab,jb->ijck", points, weight.detach().double(), points)
    return form.reshape(PRODUCTS, inputs, outputs).float()


def tiles(size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles that cover an output `(height, width)`, of each of the d x d plain convolutions."""
    return -(-size[0] // (TILE * dilation[0])), -(-size[1] // (TILE * dilation[1]))


def output_size(size: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Height and width that a 3x3 convolution of stride 1 gives."""
    return size[0] + 2 * padding[0] - 2 * dilation[0], size[1] + 2 * padding[1] - 2 * dilation[1]


def winograd_conv2d(
    images: Tensor, form: Tensor, bias: Tensor | None, padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """A 3x3 convolution of stride 1 and one group, padded with zeros.

    Beside input and output it takes a padded copy of the input and at most `144 * (C + max(C, K)) * T` bytes, where T
    is 256 tiles, or one row of tiles of all d x d plain convolutions of one image where that is more.

    Args:
        images: float32 `(N, C, H, W)` on the CPU, in any memory format.
        form: `winograd_weight(weight)`.
        bias: `(K,)`.

    Returns:
        `(N, K, H + 2 padding - 2 dilation, W + ...)`, the channels last in memory.
    """
    count, channels, height, width = images.shape
    size = output_size((height, width), padding, dilation)
    (down, across), (rows, columns) = dilation, tiles(size, dilation)
    step = (TILE * down, TILE * across)
    tall, wide = rows * step[0] + 2 * down, columns * step[1] + 2 * across
    borders = (0, 0, padding[1], wide - width - padding[1], padding[0], tall - height - padding[0])
    padded = F.pad(images.permute(0, 2, 3, 1), borders).contiguous()
    image, line, place, _ = padded.stride()
    # (row in the tile, column in the tile, N, phase, row of tiles, phase, column of tiles, C): tiles overlap
    seen = padded.as_strided(
        (_WIDE, _WIDE, count, down, rows, across, columns, channels),
        (line * down, place * across, image, line, line * step[0], place, place * step[1], 1),
    )
    outputs = form.shape[2]
    made = images.new_empty(count, rows, TILE, down, columns, TILE, across, outputs)
    for few, lines in _blocks(count, rows, down * across * columns):
        part = _block(seen[:, :, few, :, lines], form)
        part = part.permute(2, 4, 0, 3, 6, 1, 5, 7)
        made[few, lines] = part if bias is None else part + bias
    whole = made.view(count, rows * step[0], columns * step[1], outputs)
    return whole[:, : size[0], : size[1]].permute(0, 3, 1, 2)


def _made(images: Tensor, form: Tensor, bias: Tensor | None, padding: list[int], dilation: list[int]) -> Tensor:
    return winograd_conv2d(images, form, bias, (padding[0], padding[1]), (dilation[0], dilation[1]))


def _fake(images: Tensor, form: Tensor, bias: Tensor | None, padding: list[int], dilation: list[int]) -> Tensor:
    steps = (TILE * dilation[0], TILE * dilation[1])
    size = output_size((images.shape[2], images.shape[3]), (padding[0], padding[1]), (dilation[0], dilation[1]))
    covered = (-(-extent // step) * step for extent, step in zip(size, steps, strict=True))
    whole = images.new_empty(len(images), *covered, form.shape[2])
    return whole[:, : size[0], : size[1]].permute(0, 3, 1, 2)


# One operator under `torch.compile`: its loop over blocks of tiles would be unrolled there, for minutes.
torch.library.define(
    "densekd::winograd_conv2d",
    "(Tensor images, Tensor form, Tensor? bias, int[2] padding, int[2] dilation) -> Tensor",
)
torch.library.impl("densekd::winograd_conv2d", "CompositeExplicitAutograd", _made)
torch.library.register_fake("densekd::winograd_conv2d", _fake)


def _blocks(count: int, rows: int, per_row: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles that are worked on together."""
    if rows * per_row <= _TILES:
        few = _TILES // (rows * per_row)
        for start in range(0, count, few):
            yield slice(start, start + few), slice(None)
        return
    some = max(1, _TILES // per_row)
    for image in range(count):
        for start in range(0, rows, some):
            yield slice(image, image + 1), slice(start, start + some)


def _block(seen: Tensor, form: Tensor) -> Tensor:
    """The outputs `(4, 4, ..., K)` of tiles `(6, 6, ..., C)`."""
    places, channels, outputs = seen.shape[2:-1], seen.shape[-1], form.shape[2]
    count = places.numel()
    before, after = seen.new_tensor(_IN), seen.new_tensor(_OUT)
    part = torch.mm(before, seen.reshape(_WIDE, -1))
    part = torch.bmm(before.expand(_WIDE, -1, -1), part.view(_WIDE, _WIDE, -1))
    part = torch.bmm(part.view(PRODUCTS, count, channels), form)
    part = torch.mm(after, part.view(_WIDE, -1))
    part = torch.bmm(after.expand(TILE, -1, -1), part.view(TILE, _WIDE, -1))
    return part.view(TILE, TILE, *places, outputs)


class WinogradConv2d(nn.Conv2d):
    """A convolution that keeps its weights in Winograd's form besides (`put_in`), and uses them for float32 images on
    the CPU where no gradient is asked for. Anything else is convolved as ever."""

    winograd: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """As of `nn.Conv2d`."""
        usual = input.dim() != 4 or input.dtype != torch.float32 or input.device.type != "cpu" or not len(input)
        if usual or torch.is_grad_enabled():
            return super().forward(input)
        padding, dilation = geometry(self)
        if min(output_size((input.shape[2], input.shape[3]), padding, dilation)) < 1:
            return super().forward(input)  # which says what is wrong
        if torch.compiler.is_compiling():
            made: Tensor = torch.ops.densekd.winograd_conv2d(input, self.winograd, self.bias, padding, dilation)
            return made
        return winograd_conv2d(input, self.winograd, self.bias, padding, dilation)


def can_be_winograd(module: nn.Module) -> bool:
    """Whether the module is a plain 3x3 convolution of stride 1 and one group, padded with zeros."""
    return (
        type(module) is nn.Conv2d
        and "forward" not in vars(module)
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def geometry(module: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding and dilation, along rows and columns, of a convolution whose padding is given in numbers."""
    return (int(module.padding[0]), int(module.padding[1])), (module.dilation[0], module.dilation[1])


def put_in(module: nn.Module, form: Tensor) -> None:
    """Have a convolution use this form of its weights from now on.

    The module stays the same object, whatever else holds it: hooks, taps, lists and other modules of the network.
    """
    module.register_buffer("winograd", form, persistent=False)
    module.__class__ = WinogradConv2d


def take_out(network: nn.Module) -> None:
    """Every convolution of the network as it was before `put_in`."""
    for module in network.modules():
        if type(module) is WinogradConv2d:
            del module.winograd
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
