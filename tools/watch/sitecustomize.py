"""Notes what a process does outside of itself: files changed, sockets, programs started.

Python imports this file at its start where its folder is in PYTHONPATH, so that it acts in every Python process that
a command starts, too. Each line of the file that DENSEKD_WATCH names is the `repr` of (process, event, what). What a
library does in C alone raises no event: compare the folders before and after as well.
"""

from __future__ import annotations

import os
import sys

_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> places of (path, folder it is relative to) among its arguments.
_PATHS = {
    "os.chmod": [(0, 2)],
    "os.chown": [(0, 3)],
    "os.link": [(1, 3)],
    "os.mkdir": [(0, 2)],
    "os.remove": [(0, 1)],
    "os.rename": [(0, 2), (1, 3)],
    "os.rmdir": [(0, 1)],
    "os.setxattr": [(0, None)],
    "os.symlink": [(1, 2)],
    "os.truncate": [(0, None)],
    "os.utime": [(0, 3)],
    "sqlite3.connect": [(0, None)],
}
_HOSTS = {"socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname"}
_ADDRESSES = {"socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg"}


def _place(path: object, folder: object) -> str | None:
    """The absolute path; None for a file that is open already."""
    if isinstance(path, int) or path is None:
        return None
    name = os.fsdecode(path)  # type: ignore[arg-type]
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):  # noqa: PTH117 - before anything is loaded
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)  # noqa: PTH115, PTH118
    return os.path.abspath(name)  # noqa: PTH100


def _seen(event: str, arguments: tuple[object, ...]) -> list[str]:
    """What there is to note of an event."""
    if event == "open":
        path, _, flags = arguments[:3]
        place = _place(path, None) if isinstance(flags, int) and flags & _CHANGES else None
        return [] if place is None else [place]
    if event in _PATHS:
        there = [
            _place(arguments[path], None if folder is None or folder >= len(arguments) else arguments[folder])
            for path, folder in _PATHS[event]
        ]
        return [place for place in there if place is not None]
    if event in _HOSTS:
        return [repr(arguments[0])]
    if event in _ADDRESSES:  # a host and a port; a text, or nothing, joins two processes of one machine
        return [repr(arguments[1])] if isinstance(arguments[1], tuple) else []
    if event == "subprocess.Popen":
        return [os.fsdecode(arguments[0])] if isinstance(arguments[0], (str, bytes, os.PathLike)) else []
    return []


def _install(log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event in _PATHS or event in _HOSTS or event in _ADDRESSES or event == "subprocess.Popen":
            try:
                for what in _seen(event, arguments):
                    os.write(handle, f"{(os.getpid(), event, what)!r}\n".encode())
            except (OSError, ValueError) as error:  # never the watched program's business
                os.write(2, f"watch: {event}: {error}\n".encode())

    sys.addaudithook(hook)


if "DENSEKD_WATCH" in os.environ:
    _install(os.environ["DENSEKD_WATCH"])
