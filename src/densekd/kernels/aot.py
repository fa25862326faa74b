"""Triton kernels compiled ahead of time, for devices that are not here: registers, spills, shared memory.

The same `Launch` that would start on a GPU is compiled, with what Triton would specialise it for at run time: strides
that are 1, sizes and addresses that 16 divides. Needs no GPU; the assembler and the reader of its output come with
Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekd.kernels.launching import Launch

TARGETS = (80, 90)
_ALIGNED = 16
_TYPES = {
    **{torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"},
    **{torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1"},
}


class Compiled(NamedTuple):
    """What a thread of a compiled kernel takes, and its program's shared memory in bytes."""

    kernel: str
    capability: int
    warps: int
    registers: int
    #: instructions that put registers into memory because there are too few
    spills: int
    shared: int
    #: bytes of its widest load; a thread moves 16 at most
    widest_load: int
    #: of 65,536 registers, 2,048 threads and 227 KiB (163 before Hopper) of a multiprocessor
    resident_programs: int


def compiled(launch: Launch, capability: int) -> Compiled:
    """The kernel of `launch`, compiled for sm_<capability>; tensors may be without data.

    Raises whatever Triton raises where it does not compile.
    """
    import triton  # type: ignore[import-untyped]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    signature, constants, attributes = _specialised(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used, spills = _resources(built.asm["cubin"])
    shared = int(built.metadata.shared)
    together = _together(used["REG"], launch.warps, shared, capability)
    name, widest = launch.kernel.__name__, _widest_load(built.asm["ptx"])
    return Compiled(name, capability, launch.warps, used["REG"], spills, shared, widest, together)


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    signature: dict[str, str] = {}
    constants, attributes = {}, {}
    for at, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            signature[name], constants[name] = "constexpr", launch.constants[name]
            continue
        value = launch.arguments[name]
        if isinstance(value, int) and value == 1:
            signature[name], constants[name] = "constexpr", 1
            continue
        signature[name] = _type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % _ALIGNED == 0):
            attributes[(at,)] = [["tt.divisibility", _ALIGNED]]
    return signature, constants, attributes


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def _resources(cubin: bytes) -> tuple[dict[str, int], int]:
    """Registers, stack, local and shared bytes, as the assembler noted them in its output, and stores to the stack."""
    import triton.backends.nvidia  # type: ignore[import-untyped]

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"

    def read(option: str) -> str:
        return subprocess.run([str(tool), option, file.name], capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = {name: int(count) for name, count in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", read("-res-usage"))}
        return found, len(re.findall(r"\bSTL\b", read("-sass"))) if found["STACK"] or found["LOCAL"] else 0


def _widest_load(ptx: str) -> int:
    found = re.findall(r"ld\.global[\w:.]*?(?:\.v([248]))?\.[bfsu](\d+)\s", ptx)
    return max(int(count or 1) * int(bits) // 8 for count, bits in found)


def _together(registers: int, warps: int, shared: int, capability: int) -> int:
    """How many programs a multiprocessor holds at a time; registers are handed out to a warp by 256."""
    per_warp = -(-registers * 32 // 256) * 256
    memory = (227 if capability >= 90 else 163) * 1024
    return min(65_536 // (per_warp * warps), 64 // warps, 32, memory // (shared + 1024))
