"""How one map is made small and back: bfloat16 or 8 bits a value, then zstandard.

bfloat16: `(C, H, W)` rounded to nearest even; two planes, all low bytes and then all high ones (exponents lie together
and compress).

int8, per channel c over its positions p: `lo_c = min_p x`, `step_c = (max_p x - lo_c) / 255`,
`q = round((x - lo_c) / step_c)` in 0..255, and back `x = lo_c + step_c * q`; a channel of one value has step 0. The
offset pays: a softmax over positions does not see it, and the map after a ReLU uses all 256 values, not 128. Stored:
C float32 `lo`, C float32 `step` (as they are), then the bytes `q`.

The planes or bytes are compressed by zstandard at level 1.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Encoding = Literal["bfloat16", "int8"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
COMPRESSION = "zstd"
_LEVEL = 1
_STEPS = 255

_local = threading.local()


class Encoded(NamedTuple):
    """One map as it is stored, and as it will be read back (float32, where the map was)."""

    data: bytes
    back: Tensor


class BeyondError(ValueError):
    """A value that the encoding cannot hold; its words say which."""


def encode(tapped: Tensor, encoding: Encoding) -> Encoded:
    """`(C, H, W)` of any float dtype on any device.

    Raises:
        BeyondError: a value is NaN or infinite, or beyond the largest of float32 or bfloat16; int8, and the values of
            a channel lie further apart than the largest float32.
    """
    values = tapped.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(values).all()):
        raise BeyondError(_not_finite(tapped))
    return _encode_bfloat16(values) if encoding == "bfloat16" else _encode_int8(values)


def _not_finite(tapped: Tensor) -> str:
    bad = tapped[~torch.isfinite(tapped)]
    if bad.numel():
        return f"{bad.numel()} of {tapped.numel()} values are not finite (the first: {bad[0].item()})"
    return f"a value ({tapped.abs().max().item():.4g}) is beyond the largest float32"


def _encode_bfloat16(values: Tensor) -> Encoded:
    small = values.to(torch.bfloat16)
    if not bool(torch.isfinite(small).all()):
        raise BeyondError(f"a value ({values.abs().max().item():.6g}) is beyond the largest bfloat16")
    words = small.cpu().view(torch.int16).numpy().view(np.uint16).reshape(-1)
    planes = np.empty((2, words.size), np.uint8)
    planes[0], planes[1] = words & 0xFF, words >> 8
    return Encoded(_compressed(planes), small.float())


def _encode_int8(values: Tensor) -> Encoded:
    flat = values.flatten(1)
    lo, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = (high - lo) / _STEPS
    # A step of 0, or one that float32 rounds to 0: every position is `lo`.
    steps = ((flat - lo) / torch.where(step > 0, step, 1.0)).round_().clamp_(0, _STEPS).to(torch.uint8)
    back = dequantised(steps, lo, step).reshape(values.shape)
    if not bool(torch.isfinite(back).all()):
        raise BeyondError(f"values from {lo.min().item():.4g} to {high.max().item():.4g} are too far apart for int8")
    head = torch.cat((lo, step), 1).t().contiguous().cpu().numpy().astype("<f4").tobytes()
    return Encoded(head + _compressed(steps.cpu().numpy()), back)


def dequantised(steps: Tensor, lo: Tensor, step: Tensor) -> Tensor:
    """`lo + step * q` in float32; `lo` and `step` broadcast over the positions."""
    return torch.addcmul(lo, steps.float(), step)


def softened_error(given: Tensor, back: Tensor, temperature: float) -> float:
    """Relative L2 error of `softmax(map / temperature)` over the positions of each channel, over all channels.

    `|p_back - p_given| / |p_given|`, Euclidean norms over (C, H, W).
    """
    before, after = (torch.softmax(tapped.flatten(1).float() / temperature, 1) for tapped in (given, back))
    return float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))


def unpack_bfloat16(data: memoryview, out: npt.NDArray[np.uint16]) -> None:
    """Fill `out` (flat, the bits of the bfloat16 values) from what `encode` stored.

    Raises:
        ValueError: the data is not of that many values.
    """
    planes = np.frombuffer(_decompressed(data, 2 * out.size), np.uint8).reshape(2, -1)
    np.left_shift(planes[1], 8, out=out, dtype=np.uint16, casting="unsafe")
    np.bitwise_or(out, planes[0], out=out)


def unpack_int8(data: memoryview, out: npt.NDArray[np.uint8], head: npt.NDArray[np.float32]) -> None:
    """Fill `out` (flat, the steps) and `head` `(2, C)`, rows `lo` and `step`.

    Raises:
        ValueError: the data is not of that many values.
    """
    if len(data) < head.nbytes:
        raise ValueError(f"{len(data)} bytes, fewer than the {head.nbytes} of the channels' scales")
    head[...] = np.frombuffer(data[: head.nbytes], "<f4").reshape(head.shape)
    out[...] = np.frombuffer(_decompressed(data[head.nbytes :], out.size), np.uint8)


def _compressed(values: npt.NDArray[np.uint8]) -> bytes:
    return bytes(_codec("compressor").compress(values))


def _decompressed(data: memoryview, size: int) -> bytes:
    import zstandard

    try:
        found: bytes = _codec("decompressor").decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(f"not readable as zstandard ({error})") from None
    if len(found) != size:
        raise ValueError(f"{len(found)} bytes instead of {size}")
    return found


def _codec(which: str) -> Any:
    """One for each thread: they keep state while they work."""
    import zstandard

    if not hasattr(_local, which):
        made = zstandard.ZstdCompressor(_LEVEL) if which == "compressor" else zstandard.ZstdDecompressor()
        setattr(_local, which, made)
    return getattr(_local, which)
