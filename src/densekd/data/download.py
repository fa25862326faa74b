"""One file from the network, in parts: a broken connection, a stop or a restart loses nothing that has arrived.

What has arrived stands in `NAME.part`, and beside it, in `NAME.part.json`, which version of the file it is a part of.
The host is asked to go on only with that version (`If-Range`, RFC 9110 section 13.1.5); else it begins anew.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from densekd import files
from densekd._version import __version__
from densekd.errors import DataError

Moved = Callable[[str, int, int | None], None]
"""Called with (what is done, bytes done, bytes in all or None where nobody knows)."""

Said = Callable[[str], None]
"""Called with a line for the user."""

_BLOCK = 1 << 16  # what a stop may lose: a second of a slow connection
_TRIES = 6
_UNREACHED = 2
_LONGEST_WAIT = 60.0
_TIMEOUTS = (10.0, 60.0)
# What may be over in a moment: too slow, too early, too many, and the server's own troubles.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _BrokenOffError(Exception):
    """Broken off; worth another try, after `wait` seconds if the host named them."""

    def __init__(self, reason: str, *, reached: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reached, self.wait = reached, wait


class _RefusedError(Exception):
    """This address will not give the file."""


@dataclass(frozen=True)
class _Version:
    """Which bytes a part is a part of: the address, its validator for `If-Range`, and how many bytes in all."""

    url: str
    validator: str | None
    total: int | None


class _Part:
    """The bytes that have arrived, and the version they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._note = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> _Version | None:
        try:
            found = json.loads(self._note.read_text(encoding="utf-8"))
            return _Version(found["url"], found["validator"], found["total"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a note that cannot be read is no note: the download begins anew

    def begin(self, version: _Version) -> None:
        """Forget what has arrived: what comes now is of `version`."""
        self.path.unlink(missing_ok=True)
        files.write_json(self._note, asdict(version))

    def finish(self, path: Path) -> None:
        self.path.replace(path)
        self._note.unlink(missing_ok=True)


def download(
    urls: Sequence[str], path: Path, *, moved: Moved, said: Said, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Fetch the file that all of `urls` give to `path`; what an earlier call left unfinished is gone on with.

    A connection that breaks off is taken up again after 1, 2, 4, ... seconds, up to six times in a row without new
    bytes; a host that was never reached is asked twice. Then the next address is tried.

    Raises:
        DataError: no address gives the file, with the reason for each, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path)
    reasons = []
    with requests.Session() as session:
        # Packed on the way, neither lengths nor ranges would be those of the file.
        session.headers.update({"User-Agent": f"densekd/{__version__}", "Accept-Encoding": "identity"})
        for url in urls:
            try:
                _fetch(session, url, part, path.name, moved, said, sleep)
            except _RefusedError as refusal:
                reasons.append(f"{url}: {refusal}")
            else:
                part.finish(path)
                return
    kept = f"; {part.size} bytes are kept in {part.path}" if part.size else ""
    raise DataError(
        f"{path.name} cannot be downloaded: {'; '.join(reasons)}{kept}. By hand: download it elsewhere, put it at "
        f"{path}, and give the same command again"
    )


def _fetch(
    session: requests.Session,
    url: str,
    part: _Part,
    what: str,
    moved: Moved,
    said: Said,
    sleep: Callable[[float], None],
) -> None:
    failed, most, met = 0, part.size, False
    while True:
        try:
            _receive(session, url, part, what, moved, said)
            return
        except _BrokenOffError as again:
            met = met or again.reached
            failed = 1 if part.size > most else failed + 1
            most = max(most, part.size)
            if failed >= (_TRIES if met else _UNREACHED):
                raise _RefusedError(str(again)) from None
            wait = min(2.0 ** (failed - 1) if again.wait is None else again.wait, _LONGEST_WAIT)
            said(f"{what}: {again}; again in {wait:g} s")
            sleep(wait)


def _receive(session: requests.Session, url: str, part: _Part, what: str, moved: Moved, said: Said) -> None:
    """One request: all that is missing, appended to the part."""
    version, have = part.version(), part.size
    known = version is not None and version.url == url and version.validator is not None
    if known and version is not None and have and have == version.total:
        return  # stopped after the last byte
    headers = {}
    if known and version is not None and have:
        headers = {"Range": f"bytes={have}-", "If-Range": str(version.validator)}
    try:
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
            start = _start(response, url, part, version if headers else None)
            if have and start == 0:
                said(f"{what}: begins anew: {_why_anew(response, known)}")
            _append(response, part, what, moved)
    except requests.exceptions.SSLError as error:
        raise _RefusedError(f"the connection is not to be trusted ({_words(error)})") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        words = f"no connection to {urlsplit(url).hostname} ({_words(error)})"
        raise _BrokenOffError(words, reached=not _never_there(error)) from None
    except DataError:
        raise  # the disk is full; a ValueError too
    except (requests.RequestException, ValueError) as error:  # an address to go to that is none is a ValueError
        raise _RefusedError(_words(error)) from None


def _start(response: requests.Response, url: str, part: _Part, asked: _Version | None) -> int:
    """The place of the first byte that comes now; the part is made ready for it.

    Raises:
        _BrokenOffError, _RefusedError: nothing comes, or not what was asked for.
    """
    status = response.status_code
    if status == 416 and asked is not None:
        part.begin(_Version(url, None, None))
        raise _BrokenOffError("the host has fewer bytes than have arrived")
    if status in _PASSING:
        raise _BrokenOffError(
            f"HTTP status {status} ({response.reason})", wait=_seconds(response.headers.get("Retry-After"))
        )
    if status not in (200, 206):
        raise _RefusedError(f"HTTP status {status} ({response.reason})")
    if status == 206 and asked is not None:
        placed = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if placed and int(placed[1]) == part.size and _same(response, placed[2], asked):
            return part.size
        part.begin(_Version(url, None, None))
        raise _BrokenOffError("the host sent another part, or a part of another version, than was asked for")
    if status == 206:
        raise _RefusedError("the host sent a part of the file, though all of it was asked for")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _RefusedError("the host sent a web page, not the file")  # a page to log in at, or of a network's own
    part.begin(_Version(url, _validator(response), _whole(response.headers.get("Content-Length"))))
    return 0


def _append(response: requests.Response, part: _Part, what: str, moved: Moved) -> None:
    version = part.version()
    total = None if version is None else version.total
    try:
        with part.path.open("ab") as stream:
            done = stream.tell()
            moved(what, done, total)
            # As sent: some hosts call a .tgz "encoded with gzip", and it would arrive unpacked.
            for block in response.raw.stream(_BLOCK, decode_content=False):
                stream.write(block)
                done += len(block)
                moved(what, done, total)
            stream.flush()
            os.fsync(stream.fileno())
    except HTTPError as error:
        raise _BrokenOffError(
            f"the connection broke off after {part.size} of {total or '?'} bytes ({_words(error)})"
        ) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"{part.path}: the disk is full; what has arrived is kept: make room, and give the same command again"
        ) from None
    if total is not None and done != total:
        raise _BrokenOffError(f"the connection broke off after {done} of {total} bytes")


def _same(response: requests.Response, total: str, asked: _Version) -> bool:
    """Whether a part is of the version that was asked for, as far as the answer says."""
    return _validator(response) in (None, asked.validator) and (asked.total is None or total in ("*", str(asked.total)))


def _validator(response: requests.Response) -> str | None:
    """What `If-Range` takes: a strong entity tag, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _never_there(error: requests.RequestException) -> bool:
    """Whether no connection came about at all: an unknown name, a port or a proxy where nobody answers."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    absent = (requests.ConnectTimeout, requests.exceptions.ProxyError)
    return isinstance(error, absent) or isinstance(reason, NewConnectionError)


def _why_anew(response: requests.Response, known: bool) -> str:
    if not known:
        return "it is not known which version of the file the part on disk is of"
    if response.headers.get("Accept-Ranges", "none") == "none":
        return "the host gives no parts of files"
    return "the file on the host has changed"


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds; None where it is a date, or absent."""
    number = _whole(text)
    return None if number is None else float(number)


def _words(error: BaseException) -> str:
    """The innermost reason: libraries wrap one error in another, each with an address."""
    inner: BaseException = error
    while inner.args and isinstance(found := getattr(inner.args[0], "reason", inner.args[0]), BaseException):
        inner = found
    text = " ".join(str(inner).split())
    text = re.sub(r"^<?\w*Connection\w*\(.*?\)>?: |^HTTPS?Connection\w*\(.*?\): ", "", text)
    return text[:200] or type(inner).__name__
