"""How large tensors get their memory on the CPU: kept by the process when they are freed, and in huge pages.

The C library gives the memory of large tensors back to the system when they are freed, and the system clears each page
of it again for the next one: on large images that can take longer than the arithmetic. Two ways around it:

* kept memory: glibc's `mallopt` is told to hold on to it. That acts from the moment it is said.
* huge pages: 2 MiB at a time instead of 4 KiB. torch reads `THP_MEM_ALLOC_ENABLE` once, at its first tensor.

The `densekd` command and the processes that a study starts set both, never an `import densekd`; and nothing here
touches what the user has set.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Setting = Literal["auto"] | bool

HUGE = "THP_MEM_ALLOC_ENABLE"
#: what a user may have told the allocator
ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_SMAPS = Path("/proc/self/smaps")
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# More than glibc ever takes from the heap unasked (32 MiB), and of it a few huge pages are touched.
_PROBE, _TOUCHED = 64 << 20, 8 << 20
_TRIM_THRESHOLD, _MMAP_MAX, _NEVER = -1, -4, -1  # of malloc.h; a threshold of -1 is never reached


class Settings(Protocol):
    """The part of `runtime` that this is about."""

    @property
    def huge_pages(self) -> Setting: ...

    @property
    def keep_memory(self) -> Setting: ...


@dataclass(frozen=True)
class _Defaults:
    huge_pages: Setting = "auto"
    keep_memory: Setting = "auto"


DEFAULTS: Settings = _Defaults()


@dataclass(frozen=True)
class Found:
    """What holds for one of the two.

    Attributes:
        acting: None where the system does not tell.
        words: the same for a record.
    """

    acting: bool | None
    words: str


@dataclass
class _Asked:
    huge: bool = False
    kept: bool = False


_asked = _Asked()


def ask(settings: Settings) -> None:
    """Set both for this process, but what the user has set; before torch has made a tensor."""
    if HUGE not in os.environ or _asked.huge:
        os.environ[HUGE] = _huge_value(settings.huge_pages)
        _asked.huge = True
    if settings.keep_memory is not False and not any(name in os.environ for name in ALLOCATOR):
        _asked.kept = _keep() or _asked.kept


def for_child(settings: Settings) -> dict[str, str]:
    """What the environment of a process needs that this one starts, and that will `ask` itself."""
    return {} if HUGE in os.environ and not _asked.huge else {HUGE: _huge_value(settings.huge_pages)}


def look() -> dict[str, Found]:
    """What a large tensor of this process shows, under the names `huge_pages` and `kept_memory`.

    64 MiB are reserved for a moment, and 8 of them touched.
    """
    return _look(_asked.kept)


def in_words() -> dict[str, str]:
    """The same for the environment of a record."""
    return {name: found.words for name, found in look().items()}


def notices(settings: Settings) -> list[str]:
    """A line for each of the two that was set to true or false and does not act so, or where nobody can tell."""
    found = look()
    asked = {"huge_pages": settings.huge_pages, "keep_memory": settings.keep_memory}
    told = []
    for key, setting in asked.items():
        state = found["huge_pages" if key == "huge_pages" else "kept_memory"]
        if setting == "auto" or state.acting == setting:
            continue
        why = state.words if state.words not in ("on", "off") else _why(key, setting)
        told.append(f"runtime.{key}: {str(setting).lower()}: {'' if state.acting is None else 'does not act: '}{why}")
    return told


def read(smaps: str, address: int) -> dict[str, Found]:
    """What the system says of the memory at an address.

    Args:
        smaps: the content of /proc/self/smaps.
    """
    name, entries = _mapping(smaps, address)
    flags, size = entries.get("VmFlags", "").split(), entries.get("AnonHugePages", "")
    kept = Found(name == "[heap]", "on" if name == "[heap]" else "off")
    if not flags or not size:
        return _untold(f"{_SMAPS} does not tell")
    return {"huge_pages": _huge(int(size.split()[0]) > 0, "hg" in flags), "kept_memory": kept}


def _huge_value(setting: Setting) -> str:
    return "1" if setting is True else "0"


def _keep() -> bool:
    """Whether glibc now keeps what is freed, and takes all from the heap, where it can be used again."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


@functools.cache  # torch reads its variable once, and what is kept is never given up again
def _look(_kept: bool) -> dict[str, Found]:
    import torch

    probe = torch.empty(_PROBE, dtype=torch.uint8)
    middle = (_PROBE - _TOUCHED) // 2
    probe[middle : middle + _TOUCHED].fill_(1)
    try:
        text = _SMAPS.read_text()
    except OSError:
        return _untold(f"this system has no {_SMAPS}")
    return read(text, probe.data_ptr() + _PROBE // 2)


def _untold(why: str) -> dict[str, Found]:
    return {name: Found(None, f"not verified: {why}") for name in ("huge_pages", "kept_memory")}


def _huge(given: bool, asked: bool) -> Found:
    if given:
        return Found(True, "on" if asked else "on: the system gives them unasked")
    return Found(False, f"off: asked for, and the system gave none{_policy()}" if asked else "off")


def _mapping(smaps: str, address: int) -> tuple[str, Mapping[str, str]]:
    """Name and entries of the mapping that holds the address; empty where there is none."""
    within, name, entries = False, "", dict[str, str]()
    for line in smaps.splitlines():
        key, _, rest = line.partition(" ")
        if key.endswith(":"):
            if within:
                entries[key.removesuffix(":")] = rest.strip()
            continue
        if within:
            break
        low, _, high = key.partition("-")
        within = int(low, 16) <= address < int(high, 16)
        name = rest.rpartition(" ")[2]
    return (name, entries) if within else ("", {})


def _policy() -> str:
    try:
        return f" ({_SYSTEM}: {_SYSTEM.read_text().strip()})"
    except OSError:
        return ""


def _why(key: str, setting: bool) -> str:
    if key == "keep_memory":
        there = [name for name in ALLOCATOR if name in os.environ]
        if there:
            return f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} set in this process, and left alone"
        return (
            "only the densekd command tells glibc so; for a program of your own set MALLOC_MMAP_MAX_=0 and "
            "MALLOC_TRIM_THRESHOLD_=17179869184 before Python starts"
        )
    there_is = os.environ.get(HUGE)
    now = f"{HUGE} is {'not set' if there_is is None else there_is} in this process"
    return (
        f"{now}, and torch reads it at its first tensor; the densekd command sets it unless it is set already; in a "
        f"program of your own set {HUGE}={_huge_value(setting)} before torch"
    )
