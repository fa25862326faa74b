"""How Triton kernels are tested, in four tiers, each of which says why it cannot run:

1. without Triton: a clear error (fast tests, anywhere);
2. Triton's interpreter on the CPU: values, in a process of its own (`run_interpreted`), because the interpreter is
   chosen when Triton is imported. Such tests stand in `tests/interpreted_*.py`, which pytest alone does not collect;
3. compiled ahead of time for devices that are not here (`needs_compiler`);
4. a real GPU (`needs_gpu`).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

GUARD = 64
#: stands around every buffer; exact in every type that kernels write
SENTINEL = -4096.0


def no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "Triton is not installed here"


def no_gpu() -> str | None:
    return no_triton() or (None if torch.cuda.is_available() else "torch sees no CUDA device here: tier 4 did not run")


needs_triton = pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
#: the assembler comes with Triton
needs_compiler = needs_triton
needs_gpu = pytest.mark.skipif(no_gpu() is not None, reason=str(no_gpu()))


def run_interpreted(name: str, *options: str) -> str:
    """The tests of `tests/<name>` under Triton's interpreter; what pytest printed. Fails where one of them does."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    path = Path(__file__).with_name(name)
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, env=environment, cwd=path.parents[1])
    assert done.returncode == 0, f"{name} under Triton's interpreter:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    return done.stdout


def surrounded(values: torch.Tensor, fill: float = float("nan")) -> torch.Tensor:
    """The same values and strides inside a larger buffer full of `fill`: a read past the ends shows in the result."""
    buffer = torch.full((_extent(values) + 2 * GUARD,), fill, dtype=values.dtype, device=values.device)
    return buffer.as_strided(values.shape, values.stride(), GUARD).copy_(values)


@contextmanager
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """`torch.empty`, `empty_like` and `Tensor.new_empty` give buffers full of NaN between guards.

    Whatever a kernel leaves unwritten is NaN afterwards; a write past either end of a buffer fails at the end.
    Yields the buffers, guards included.
    """
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty
    buffers: list[torch.Tensor] = []

    def guarded(made: torch.Tensor) -> torch.Tensor:
        if not made.is_floating_point() or made.device.type == "meta":
            return made
        buffer = empty(_extent(made) + 2 * GUARD, dtype=made.dtype, device=made.device).fill_(torch.nan)
        buffer[:GUARD], buffer[-GUARD:] = SENTINEL, SENTINEL
        buffers.append(buffer)
        return buffer.as_strided(made.shape, made.stride(), GUARD)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *a, **k: guarded(empty(*a, **k)))
        patch.setattr(torch, "empty_like", lambda *a, **k: guarded(empty_like(*a, **k)))
        patch.setattr(torch.Tensor, "new_empty", lambda *a, **k: guarded(new_empty(*a, **k)))
        yield buffers
    for buffer in buffers:
        ends = torch.cat((buffer[:GUARD], buffer[-GUARD:])).float()
        assert bool((ends == SENTINEL).all()), "a kernel wrote past the end of its buffer"


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last, gaps included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def mend_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter round float32 to bfloat16 to the nearest, as GPUs do (`cvt.rn`); by itself it cuts off.

    The way back is done by torch too, which is faster. Triton 3.6's interpreter also takes an array of one element for
    a number in `range`, which NumPy 2.4 no longer allows.
    """
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values, from_type, to_type, mode):  # type: ignore[no-untyped-def]
        if (from_type, to_type) == (float32, bfloat16):
            return torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view("uint16")
        if (from_type, to_type) == (bfloat16, float32):
            # the caller takes bits
            return torch.from_numpy(values.view("int16").copy()).view(torch.bfloat16).float().numpy().view("uint32")
        return convert(values, from_type, to_type, mode)

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor, scope):  # type: ignore[no-untyped-def]
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def changed_copy(module: ModuleType, folder: Path, old: str, new: str) -> ModuleType:
    """The module with one piece of its source replaced, wherever it stands: a kernel that is wrong on purpose."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text()
    assert old in text, f"{module.__name__} has no longer: {old}"
    path = folder / "wrong_kernels.py"
    path.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location("wrong_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
