"""What a command asks of the libraries it uses: to leave nothing in the home directory, and to send nothing unasked.

Only the `densekd` command asks so, and what it starts; never an `import densekd`: there the program decides. Nothing
here touches what the user has set.
"""

from __future__ import annotations

import getpass
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FONTS = "MPLCONFIGDIR"
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
#: counting of uses by the hub's library, reports of errors by wandb, which timm imports wherever it is installed
_SILENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_ERROR_REPORTING": "false"}


@contextmanager
def considerate() -> Iterator[None]:
    """Inside the block matplotlib keeps its folder where it is gone afterwards, and no library reports anything."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    _name_the_nameless()
    if _FONTS in os.environ:
        yield
        return
    folder = _temporary_folder()
    if folder is None:
        yield
        return
    # What this logger warns of is a list of fonts that could not be kept: nothing to anybody here.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    os.environ[_FONTS] = str(folder)
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:  # not a loading process that leaves by an exception
            os.environ.pop(_FONTS, None)
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path | None:
    """A folder with the lists of fonts that matplotlib has made for this user before; None where none can be had."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="densekd-"))
    except OSError:
        return None
    with suppress(OSError, RuntimeError):  # no home, or not to be read: the list is made anew
        for there in _kept().glob("fontlist-v*.json"):
            shutil.copyfile(there, folder / there.name)
    return folder


def _kept() -> Path:
    """Where matplotlib keeps its lists of fonts."""
    if sys.platform.startswith(("linux", "freebsd")):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    return Path.home() / ".matplotlib"


def _name_the_nameless() -> None:
    """A user without a name (a number given to a container) has no folder of torch's for compiled code.

    torch 2.11 asks for the name when it is imported, and ends with an error where there is none.
    """
    try:
        getpass.getuser()
    except (KeyError, ImportError, OSError):
        number = os.getuid() if hasattr(os, "getuid") else "unknown"
        os.environ.setdefault(_COMPILED, str(Path(tempfile.gettempdir()) / f"torchinductor_uid_{number}"))
