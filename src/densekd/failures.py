"""What stops a network from outside of densekd, in words for the user: memory, a lost process, its own code.

Only names and words of other libraries are looked at: nothing is imported here, and the command line stays light.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from densekd.errors import DensekdError, ModelError, ResourceError

OWN_PREFIX = "densekd_model_"
"""How the names of modules begin that were made of a user's file (`path/to/file.py:function`)."""

_LESS_MEMORY = (
    "lower train.batch_size (train.accumulate makes up for it), data.augment.crop or data.augment.size; with a teacher "
    "teacher.engine.micro_batch shows it fewer images at once, and distill.cache keeps it out of training; on CUDA "
    "runtime.precision=bfloat16 takes about half; in an evaluation train.evaluate_batch_size"
)
# Neither torch's CPU allocator nor the drivers have classes of their own for this, only words.
_MEMORY = re.compile(
    r"out of memory|not enough memory|DefaultCPUAllocator|allocate memory|_ALLOC_FAILED", re.IGNORECASE
)
_NO_ROOM = {
    errno.ENOSPC: "no space left on the disk; make room there",
    errno.EDQUOT: "your quota of the disk is used up; make room there",
    errno.EFBIG: "no file may become so large here; raise the limit (ulimit -f)",
}
_LOST = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal: (?P<signal>[\w ]+)|exited unexp)")
_SHARED = re.compile(r"Bus error|(shared memory|shm|/torch_)[^\n]*(No space left|limit)|No space left[^\n]*shm")
_SINGLE = re.compile(r"Expected more than 1 value per channel.*?(?P<size>\[[\d, ]+\])?\)?$", re.DOTALL)
_LONGEST = 300


def explained(error: BaseException) -> DensekdError | None:
    """The user's view of an error; None for one that nobody foresaw, which is a defect."""
    if isinstance(error, DensekdError):
        return error
    return _lost_process(error) or _memory(error) or _full(error) or _single_value(error) or _own_code(error)


@contextmanager
def told() -> Iterator[None]:
    """Inside the block, errors that can be explained are raised as what they are for the user.

    Raises:
        ResourceError: memory ran out, or a loading process was ended.
        ModelError: the network cannot be trained as asked, or its own code raised.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        found = explained(error)
        if found is None or found is error:
            raise
        raise found from error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of Python, of torch on the CPU, or of a device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None


def out_of_room(error: BaseException) -> bool:
    """Whether a disk took no more."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def own_place(error: BaseException) -> str | None:
    """`file:line` in the user's own file, or in one beside it, where an error arose; None if it arose elsewhere.

    Elsewhere is densekd too: what densekd's hooks raise within a network is no fault of the network's.
    """
    folders = _own_folders()
    found = None
    for frame, line in _frames(error) if folders else ():
        path = Path(frame.f_code.co_filename)
        if _HERE in path.parents:
            found = None
        elif not _installed(path) and any(folder in path.parents for folder in folders):
            found = f"{path}:{line}"
    return found


_HERE = Path(__file__).parent
_LIBRARIES = {Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}


def _installed(path: Path) -> bool:
    parents = set(path.parents)
    return bool(parents & _LIBRARIES) or bool({"site-packages", "dist-packages"} & {*path.parts})


def _own_folders() -> set[Path]:
    # A copy: what the garbage collector calls between two entries may import.
    own = [module for name, module in sys.modules.copy().items() if name.startswith(OWN_PREFIX)]
    return {Path(module.__file__).parent for module in own if module.__file__ is not None}


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _words(error: BaseException) -> str:
    words = " ".join(str(error).split())[:_LONGEST].rstrip(". ")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _module(error: BaseException) -> str:
    """The innermost module of a network that was running, ` in Network.path (Class)`; empty outside of networks."""
    kind: Any = getattr(sys.modules.get("torch.nn"), "Module", None)
    if kind is None:
        return ""
    callers = [frame.f_locals.get("self") for frame, _ in _frames(error)]
    modules = [caller for caller in callers if isinstance(caller, kind)]
    modules = [module for module in modules if not type(module).__module__.startswith("densekd.")]
    if not modules:
        return ""
    top, last = modules[0], modules[-1]
    path = next((name for name, module in top.named_modules() if module is last), "")
    return f" in {type(top).__name__}.{path} ({type(last).__name__})" if path else f" in {type(last).__name__}"


def _memory(error: BaseException) -> DensekdError | None:
    if not out_of_memory(error):
        return None
    return ResourceError(f"out of memory{_module(error)} ({_words(error)}); {_LESS_MEMORY}")


def _full(error: BaseException) -> DensekdError | None:
    if not isinstance(error, OSError) or not out_of_room(error):
        return None
    what = _NO_ROOM[error.errno or 0]
    place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    return ResourceError(f"{place}could not be written: {what}, and give the command again")


def _lost_process(error: BaseException) -> DensekdError | None:
    text = str(error)
    lost = _LOST.search(text)
    if not isinstance(error, RuntimeError) or (lost is None and "DataLoader worker" not in text):
        return None
    if _SHARED.search(text):
        return ResourceError(
            "a loading process found no room in shared memory (/dev/shm); make it larger (docker run --shm-size), or "
            "lower runtime.workers or train.batch_size; runtime.workers=0 needs none"
        )
    if lost is None:
        return None
    return lost_process(lost["signal"])


def lost_process(signal: str | None, who: str = "a loading process", doing: str = "") -> ResourceError:
    """The error for a loading process that is gone, ended by this signal where it is known."""
    how = f"was ended by signal {signal.strip()}" if signal else "ended unexpectedly"
    return ResourceError(
        f"{who} {how}{doing}; mostly because memory ran out: lower runtime.workers (each holds images of its own) "
        "or train.batch_size; runtime.workers=0 loads in the main process"
    )


def _single_value(error: BaseException) -> DensekdError | None:
    found = _SINGLE.search(str(error)) if isinstance(error, ValueError) else None
    if found is None:
        return None
    size = f", given {found['size']}" if found["size"] else ""
    return ModelError(
        f"normalisation{_module(error)} needs several values per channel in training{size}: one image and a map of one "
        "pixel are one value. Use train.batch_size=2 or more, or larger images (data.augment.crop); train.accumulate "
        "does not help"
    )


def _own_code(error: BaseException) -> DensekdError | None:
    place = own_place(error)
    if place is None:
        return None
    words = f"the program is ended there, {error!r}" if isinstance(error, SystemExit) else _words(error)
    return ModelError(f"{place}: {words} (in your own code)")
