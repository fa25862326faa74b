"""How the rows of a channel-wise KL are spread over a GPU, and how their gradient is kept: a table, no search.

Rows of P positions, C channels, N images. Three ways:

* resident: a program holds its rows whole, in registers. Both maps are read once, the gradient is written once.
* streamed: a program runs over its rows twice, first for the sums, then for the gradient; what it has just read is
  still in the cache. From memory that is three passes too. The longer the rows, the fewer programs at a time.
* split: the rows are cut into parts, so that few long rows fill every multiprocessor. One start finds each part's
  sums, a second joins them and makes the gradient, a third the values. Both maps are read twice: five passes, fewer
  where the cache holds the end of the first for the beginning of the second.

The numbers are reckoned from registers (65,536 of a multiprocessor), cache and lines of memory of 128 bytes. They
were not measured on a GPU; `benchmarks/gpu.py` is what measures them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Way = Literal["resident", "streamed", "split"]

#: most elements of a map that one program holds: half of what the registers could, so that two programs of a
#: multiprocessor read and compute in turns
RESIDENT = 8_192
#: elements of a map that a thread handles at a time where its program cannot hold them all
SHARE = 8
#: bytes of a line of memory: as many neighbouring channels are read together where channels are innermost
LINE = 128
#: bytes of both maps that the programs of a multiprocessor may have in its cache together for the second run over them,
#: and the most that one alone may leave to the larger cache that all share
NEAR, CACHED = 128 * 1024, 192 * 1024
#: programs per multiprocessor that hide each other's waiting, and how few are still worth a row each
PROGRAMS, FEWEST = 8, 2
#: most partial results that one program joins
JOINED = 4_096
#: elements from which a GPU's time outweighs the few more microseconds that starting a Triton kernel takes
WORTH = 65_536


#: what the kernels take; they compute in float32
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: gradients of long rows lie below float16's range: they are kept this many times larger
HALF_SCALE = 2.0**15


class Plan(NamedTuple):
    """A way, the tile that a program holds at a time, its warps of 32 threads, and the parts of a row."""

    way: Way
    channels: int
    positions: int
    warps: int
    parts: int = 1
    part: int = 0  # positions of a part, a multiple of a tile's; 0: all


def worth_it(elements: int) -> bool:
    """Whether backend "auto" takes the Triton kernels for a map of so many elements on a GPU that can run them."""
    return elements >= WORTH


def gradient_scale(dtype: torch.dtype, temperature: float, factor: float) -> tuple[float, float]:
    """What q - p is multiplied by before it is kept in `dtype`, and what is left for the backward pass."""
    whole = temperature * factor
    return (HALF_SCALE, whole / HALF_SCALE) if dtype == torch.float16 else (whole, 1.0)


def make_plan(
    images: int, channels: int, positions: int, *, itemsize: int, rows_lie_flat: bool, multiprocessors: int
) -> Plan:
    """What the table says.

    Args:
        itemsize: bytes of an element, of the larger of both maps.
        rows_lie_flat: the positions of a row are neighbours in memory in both maps; else channels are, in one at least.
        multiprocessors: of the device.
    """
    width = 1 if rows_lie_flat else min(power_of_two(channels), LINE // itemsize)
    whole = max(16, power_of_two(positions))
    # Half a line of each position is read as fast, and leaves room for twice the positions.
    for narrow in (width, max(1, width // 2)):
        if narrow * whole <= RESIDENT:
            return _resident(channels, whole, narrow)
    groups = images * -(-channels // width)
    pair = 2 * itemsize * width * positions
    if groups >= FEWEST * multiprocessors and pair <= CACHED:
        # Sums of several channels take more registers than 32 warps leave a thread.
        together = next((number for number in (4, 2) if number * pair <= NEAR), 1)
        warps = min(32 if width == 1 else 16, 32 // together)
        return Plan("streamed", width, _tile(width, warps), warps)
    return split_plan(groups, positions, width, multiprocessors)


def split_plan(groups: int, positions: int, width: int, multiprocessors: int) -> Plan:
    """So many parts that the programs fill the device, each at least four tiles long."""
    tile, warps = _tile(width, 8), 8
    wanted = -(-PROGRAMS * multiprocessors // groups)
    parts = max(1, min(wanted, positions // (4 * tile), JOINED // width, 1024))
    tiles = -(-positions // (parts * tile))
    return Plan("split", width, tile, warps, -(-positions // (tiles * tile)), tiles * tile)


def _tile(width: int, warps: int) -> int:
    return max(16, 32 * warps * SHARE // width)


def _resident(channels: int, whole: int, width: int) -> Plan:
    """Short rows share a program."""
    width = max(width, min(power_of_two(channels), 1024 // whole))
    return Plan("resident", width, whole, min(32, max(4, width * whole // 512)))


def power_of_two(number: int) -> int:
    """The smallest from `number` up."""
    return 1 << (number - 1).bit_length()
