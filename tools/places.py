"""Where densekd must work: a piece of work (`session.py`) in unfriendly places, watched by `watch/sitecustomize.py`.

Each check says what it found: nothing is a success. What is allowed of a session: to write below its own folder; to
have temporary files in TMPDIR, which are gone at its end but for torch's folder of compiled code; the kernel's own
files; Python's compiled modules. It may open no connection, and says nothing on stderr but densekd's own lines.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ODD = 'it\'s a "place" #1: ünï 名' if os.name != "nt" else "it's a place #1 ünï 名"
SMALL = 128 * 1024
"""Bytes of the small TMPDIR: less than the list of fonts and any picture's worth, more than a socket."""
_SECONDS = 300
_SYSTEM = ("/dev/null", "/dev/shm/", "/dev/tty", "/proc/self/")
_TORCH = "torchinductor_"
_LONG = 70
"""Bytes of a TMPDIR from which on loading processes make their sockets elsewhere."""
_SOCKETS = tuple(f"{place}/pymp-" for place in ("/tmp", "/var/tmp", "/usr/tmp"))
_NOISE = re.compile(r"warn|https?:|offline|connect|retry|token|traceback|telemetry|matplotlib|deprecat", re.IGNORECASE)
_MOUNTED = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
_NETWORK = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")
_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TORCH_HOME", "TEMP", "TMP")


@dataclass
class Seen:
    """What a session did: (event, what) as noted, exit code, stderr, and what it left."""

    code: int
    said: str
    events: list[tuple[str, str]] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)

    def findings(self, folder: Path, temporary: Path) -> list[str]:
        """What is not allowed."""
        found = [f"exit code {self.code}: {self.said[-1500:]}"] if self.code else []
        inside = (f"{folder}{os.sep}", f"{temporary}{os.sep}", *_SYSTEM)
        if len(os.fsencode(temporary)) > _LONG:
            inside += _SOCKETS
        for event, what in dict.fromkeys(self.events):
            if event.startswith("socket."):
                found.append(f"a connection: {event} {what}")
            elif event != "subprocess.Popen" and not (
                what.startswith(inside) or what in (str(folder), str(temporary)) or _is_code(what)
            ):
                found.append(f"a write elsewhere: {event} {what}")
        found += [f"left in {place}: {', '.join(names[:5])}" for place, names in self.left.items() if names]
        noise = [line for line in self.said.splitlines() if _NOISE.search(line)] if not self.code else []
        return found + [f"said: {line[:300]}" for line in noise]

    @property
    def programs(self) -> list[str]:
        """Programs that were started; what they do is theirs."""
        return sorted({what for event, what in self.events if event == "subprocess.Popen"})


def _is_code(path: str) -> bool:
    """Python's compiled modules, which it writes beside the modules where it may."""
    return "__pycache__" in path


def listing(folder: Path) -> set[str]:
    """Names below a folder, with sizes and times of files; compiled modules left out."""
    found = set()
    for place, _, names in os.walk(folder):
        if not _is_code(place):
            found.add(place)
            for name in names:
                with_status = os.lstat(os.path.join(place, name))  # noqa: PTH118 - tens of thousands of files
                found.add(f"{place}{os.sep}{name} {with_status.st_size} {with_status.st_mtime_ns}")
    return found


def session(
    python: Path,
    folder: Path,
    *,
    home: Path | None,
    temporary: Path,
    watched: Sequence[Path] = (),
    before: Sequence[str] = (),
    start: str = "",
) -> Seen:
    """Do the work in `folder` with that home and TMPDIR.

    Args:
        python: of the environment that densekd is installed in.
        folder: is made; the working folder, too.
        home: None: the variable is not set.
        temporary: TMPDIR, whether it is there or not.
        watched: folders in which nothing may appear or change.
        before: a command that starts the session, for mounts.
        start: how its processes are started, where not as Python does.
    """
    folder.mkdir(parents=True)
    log = folder.parent / f"{folder.name}.watch"
    gone = {*_NETWORK, *_FOLDERS, "HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in gone}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(TOOLS / "watch"), "DENSEKD_WATCH": str(log)}
    environment |= {"OMP_NUM_THREADS": "1", **({} if home is None else {"HOME": str(home)})}
    folders = [*watched, *[place for place in (home, temporary) if place is not None and place.is_dir()]]
    there = {place: listing(place) for place in folders}
    done = subprocess.run(
        [*before, str(python), str(TOOLS / "session.py"), str(folder), *([start] if start else [])],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_SECONDS,
        check=False,
    )
    events = [ast.literal_eval(line)[1:] for line in log.read_text(encoding="utf-8").splitlines()]
    left = {str(place): sorted(listing(place) - there[place]) for place in folders}
    for place in (temporary, *(() if home is None else (home,))):
        # A folder's own time says nothing; torch makes its folder for compiled code when it is imported.
        left[str(place)] = [name for name in left.get(str(place), []) if _TORCH not in name]
    return Seen(done.returncode, done.stderr.decode("utf-8", "replace"), events, left)


def mounted(folder: Path, options: str) -> list[str] | None:
    """A command before a command, for which `folder` is a small file system; None where that may not be."""
    alone = ["unshare", "--mount", *([] if getattr(os, "geteuid", lambda: 0)() == 0 else ["--map-root-user"]), "--"]
    before = [*alone, "sh", "-c", _MOUNTED, "sh", options, str(folder)]
    try:
        done = subprocess.run([*before, "true"], capture_output=True, check=False)
    except OSError:
        return None
    return before if done.returncode == 0 else None


class NotTried(Exception):  # noqa: N818 - no error
    """A check that this machine does not allow, and why."""


def _usual(work: Path) -> tuple[Path, Path]:
    home, temporary = work / "home", work / "tmp"
    for place in (home, temporary):
        place.mkdir(parents=True)
    return home, temporary


def friendly(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """Nothing is written outside the run's folder, and no connection opened, where everything would be allowed."""
    home, temporary = _usual(work)
    seen = session(python, work / "work", home=home, temporary=temporary, watched=watched)
    return seen.findings(work / "work", temporary)


def read_only_home(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """A home directory in which nothing can be written."""
    home, temporary = _usual(work)
    before: list[str] | None = []
    if getattr(os, "geteuid", lambda: 0)() == 0:  # to whom no folder is read-only but by the file system
        before = mounted(home, "ro,size=64k")
    else:
        home.chmod(0o555)
    if before is None:
        raise NotTried("the user may write everywhere, and may mount nothing")
    seen = session(python, work / "work", home=home, temporary=temporary, before=before, watched=watched)
    return seen.findings(work / "work", temporary)


def no_home(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """HOME is not set, as for some services and containers."""
    _, temporary = _usual(work)
    seen = session(python, work / "work", home=None, temporary=temporary, watched=watched)
    return seen.findings(work / "work", temporary)


def missing_folders(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """Neither HOME nor TMPDIR exist: temporary files go where Python finds a place."""
    import tempfile

    before = tempfile.tempdir, os.environ.pop("TMPDIR", None)
    try:
        tempfile.tempdir = None
        place = Path(tempfile.gettempdir())
    finally:
        tempfile.tempdir = before[0]
        os.environ |= {} if before[1] is None else {"TMPDIR": before[1]}
    seen = session(python, work / "work", home=work / "no home", temporary=work / "no tmp", watched=watched)
    found = seen.findings(work / "work", place)
    return found + [f"made: {name}" for name in ("no home", "no tmp") if (work / name).exists()]


def odd_names(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """Spaces, quotes, a sharp, a colon and letters of other scripts in every path: data, code, run, HOME, TMPDIR."""
    odd = work / ODD
    home, temporary = _usual(odd)
    folder = odd / ODD
    return session(python, folder, home=home, temporary=temporary, watched=watched).findings(folder, temporary)


def small_tmpdir(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """A TMPDIR of 128 KiB."""
    home, temporary = _usual(work)
    before = mounted(temporary, f"size={SMALL}")
    if before is None:
        raise NotTried("nothing may be mounted here")
    seen = session(python, work / "work", home=home, temporary=temporary, before=before, watched=watched)
    return seen.findings(work / "work", temporary)


def long_tmpdir(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """A TMPDIR with a name longer than that of a socket may be: loading processes take the usual folder for theirs."""
    home, _ = _usual(work)
    temporary = work / ("long" * 30)
    temporary.mkdir()
    seen = session(python, work / "work", home=home, temporary=temporary, watched=watched)
    return seen.findings(work / "work", temporary)


def started_afresh(python: Path, work: Path, watched: Sequence[Path] = ()) -> list[str]:
    """Loading processes that are started afresh, as on macOS and Windows, and like those of Python 3.14."""
    home, temporary = _usual(work)
    seen = session(python, work / "work", home=home, temporary=temporary, watched=watched, start="spawn")
    return seen.findings(work / "work", temporary)


CHECKS: dict[str, Callable[..., list[str]]] = {
    "nothing written elsewhere, no connection": friendly,
    "read-only home": read_only_home,
    "HOME not set": no_home,
    "HOME and TMPDIR missing": missing_folders,
    "odd names": odd_names,
    "small TMPDIR": small_tmpdir,
    "long TMPDIR": long_tmpdir,
    "processes started afresh": started_afresh,
}


def main() -> int:
    """Every check in the environment that runs this; exit code 1 where one finds something."""
    import tempfile

    bad = False
    for name, check in CHECKS.items():
        with tempfile.TemporaryDirectory(prefix="densekd-places-") as work:
            try:
                found = check(Path(sys.executable), Path(work))
                words = "ok" if not found else "\n  ".join(["failed:", *found])
                bad |= bool(found)
            except NotTried as why:
                words = f"not tried: {why}"
        print(f"{name}: {words}", flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
