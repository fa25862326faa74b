"""Data sets from the network: parts, stops, checksums, archives that lie, disks that are full; against a local host."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import requests

from densekd.data.benchmarks.layout import lacking
from densekd.data.download import download
from densekd.data.get import get, plan
from densekd.data.kinds import FilesSpec
from densekd.data.sources import SOURCES, Archive, Count, Source, source_of
from densekd.data.specs import FolderSpec
from densekd.data.unpack import gigabytes, unpack
from densekd.errors import ArgumentError, DataError

SPECS = {spec.model_fields["name"].default: spec for spec in get_args(FilesSpec) if spec is not FolderSpec}
HANGS_UP = 0
CONTENT = bytes(range(256)) * 40


@dataclass
class Host:
    """A host with one file, and what it does wrong, request by request."""

    url: str = ""
    content: bytes = CONTENT
    tag: str | None = '"one"'
    changed: str | None = None
    ranges: bool = True
    length: bool = True
    encoding: str | None = None
    kind: str | None = None
    elsewhere: str | None = None
    answers: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    retry_after: str | None = None
    asked: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted, validator = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append(wanted)
        status = self.answers.pop(0) if self.answers else 200
        if status == HANGS_UP:
            request.close_connection = True
            return
        if status != 200:
            request.send_response(status)
            if self.retry_after:
                request.send_header("Retry-After", self.retry_after)
            if self.elsewhere:
                request.send_header("Location", self.elsewhere)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        # A weak tag never serves here (RFC 9110, section 13.1.5).
        fits = validator in (self.tag, self.changed) and not str(validator).startswith("W/")
        part = bool(wanted) and self.ranges and fits
        body = self.content[first:] if part else self.content
        request.send_response(206 if part else 200)
        self._headers(request, body, first if part else None)
        request.end_headers()
        sent = body[: self.cuts.pop(0)] if self.cuts else body
        request.wfile.write(sent if self.length else b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent))
        if len(sent) < len(body):
            request.close_connection = True

    def _headers(self, request: BaseHTTPRequestHandler, body: bytes, first: int | None) -> None:
        if self.ranges:
            request.send_header("Accept-Ranges", "bytes")
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        else:
            request.send_header("Transfer-Encoding", "chunked")
        said = {"ETag": self.tag, "Last-Modified": self.changed}
        said |= {"Content-Encoding": self.encoding, "Content-Type": self.kind}
        for name, value in said.items():
            if value is not None:
                request.send_header(name, value)
        if first is not None:
            total = len(self.content)
            request.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.server.host.answer(self)  # type: ignore[attr-defined]

        def log_message(self, *args: Any) -> None:
            pass

    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.daemon_threads = True
    thread = threading.Thread(target=lambda: one.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def host(server: ThreadingHTTPServer) -> Host:
    server.host = Host(url=f"http://127.0.0.1:{server.server_port}/file.bin")  # type: ignore[attr-defined]
    return server.host  # type: ignore[attr-defined,no-any-return]


class Told:
    """What a call says, how far it came, and how long it waited."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.moves: list[tuple[str, int, int | None]] = []
        self.waits: list[float] = []

    def moved(self, what: str, done: int, total: int | None) -> None:
        self.moves.append((what, done, total))

    def fetch(self, path: Path, *urls: str) -> None:
        download(urls, path, moved=self.moved, said=self.lines.append, sleep=self.waits.append)


@pytest.fixture
def told() -> Told:
    return Told()


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestDownload:
    def test_a_whole_file(self, host: Host, told: Told, tmp_path: Path) -> None:
        told.fetch(tmp_path / "new" / "file.bin", host.url)
        assert (tmp_path / "new" / "file.bin").read_bytes() == CONTENT
        assert left(tmp_path) == ["new/file.bin"]
        assert told.moves[0] == ("file.bin", 0, len(CONTENT))
        assert told.moves[-1] == ("file.bin", len(CONTENT), len(CONTENT))
        assert (told.lines, told.waits) == ([], [])

    def test_a_broken_connection_is_taken_up_where_it_broke(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.cuts = [3000, 2000, 0]
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert host.asked == [None, "bytes=3000-", "bytes=5000-", "bytes=5000-"]
        assert told.waits == [1, 1, 2]
        assert "the connection broke off after 3000 of 10240 bytes" in told.lines[0]

    def test_a_second_call_goes_on(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.cuts = [4000, *[0] * 5]
        with pytest.raises(DataError, match=r"broke off after 4000 of 10240.*4000 bytes are kept in .*file\.bin\.part"):
            told.fetch(tmp_path / "file.bin", host.url)
        assert left(tmp_path) == ["file.bin.part", "file.bin.part.json"]
        assert told.waits == [1, 2, 4, 8, 16]
        host.cuts, host.asked = [], []
        told.fetch(tmp_path / "file.bin", host.url)
        assert host.asked == ["bytes=4000-"]
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert left(tmp_path) == ["file.bin"]

    def test_a_date_serves_where_the_tag_is_weak(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.tag, host.changed, host.cuts = 'W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT", [4000]
        told.fetch(tmp_path / "file.bin", host.url)
        assert host.asked == [None, "bytes=4000-"]
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert len(told.lines) == 1  # of the broken connection: nothing began anew

    def test_a_changed_file_begins_anew(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.cuts = [4000, *[0] * 5]
        with pytest.raises(DataError):
            told.fetch(tmp_path / "file.bin", host.url)
        host.cuts, host.tag, host.content = [], '"two"', CONTENT[::-1]
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT[::-1]
        assert told.lines[-1] == "file.bin: begins anew: the file on the host has changed"

    def test_a_host_that_sends_parts_of_another_version_all_the_same(
        self, host: Host, told: Told, tmp_path: Path
    ) -> None:
        host.cuts = [4000]
        given = host._headers
        host._headers = lambda request, body, first: (  # type: ignore[method-assign]
            setattr(host, "tag", '"two"') if first else None,
            given(request, body, first),
        )
        told.fetch(tmp_path / "file.bin", host.url)
        assert host.asked == [None, "bytes=4000-", None]
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert any("of another version" in line for line in told.lines)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"ranges": False}, "gives no parts of files"), ({"tag": None}, "not known which version")],
    )
    def test_a_host_without_parts_begins_anew(
        self, host: Host, told: Told, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        vars(host).update(changes)
        host.cuts = [4000]
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert words in told.lines[-1]

    def test_a_host_that_does_not_tell_the_length(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.length = False
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert told.moves[-1] == ("file.bin", len(CONTENT), None)

    def test_bytes_arrive_as_they_are_stored(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.encoding = "x-gzip"
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT

    def test_a_web_page_is_not_the_file(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.kind = "text/html; charset=utf-8"
        with pytest.raises(DataError, match=r"cannot be downloaded: .*the host sent a web page, not the file"):
            told.fetch(tmp_path / "file.bin", host.url)
        assert (told.waits, left(tmp_path)) == ([], [])

    @pytest.mark.parametrize("address", ["http://[bad", "file:///etc/passwd", "file.bin"])
    def test_an_address_that_leads_nowhere(self, host: Host, told: Told, tmp_path: Path, address: str) -> None:
        host.answers, host.elsewhere = [302] * 31, address
        with pytest.raises(DataError, match=r"cannot be downloaded: .*(Invalid|No connection adapters|30 redirects)"):
            told.fetch(tmp_path / "file.bin", host.url)
        assert (told.waits, left(tmp_path)) == ([], [])

    def test_a_stop_loses_little(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.content = bytes(200_000)

        def stop(what: str, done: int, total: int | None) -> None:
            if done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download([host.url], tmp_path / "file.bin", moved=stop, said=told.lines.append)
        assert 0 < (tmp_path / "file.bin.part").stat().st_size < 100_000
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == host.content

    def test_a_missing_file_is_said_at_once(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.answers = [404]
        with pytest.raises(
            DataError, match=r"cannot be downloaded: .*HTTP status 404.*By hand: .*put it at .*file\.bin"
        ):
            told.fetch(tmp_path / "file.bin", host.url)
        assert (told.waits, left(tmp_path)) == ([], [])

    def test_a_passing_trouble_passes(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.answers = [500, 503]
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert told.waits == [1, 2]
        assert "HTTP status 500" in told.lines[0]

    def test_the_host_may_name_the_wait(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.answers, host.retry_after = [429, 429], "7000"
        told.fetch(tmp_path / "file.bin", host.url)
        assert told.waits == [60, 60]

    def test_a_trouble_that_stays_ends(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.answers = [500] * 10
        with pytest.raises(DataError, match="HTTP status 500"):
            told.fetch(tmp_path / "file.bin", host.url)
        assert len(host.asked) == 6

    def test_too_much_on_disk_begins_anew(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.cuts = [4000, *[0] * 5]
        with pytest.raises(DataError):
            told.fetch(tmp_path / "file.bin", host.url)
        host.cuts, host.answers = [], [416]
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT

    def test_stopped_after_the_last_byte(self, host: Host, told: Told, tmp_path: Path) -> None:
        told.fetch(tmp_path / "file.bin", host.url)
        host.asked, host.cuts = [], [4000, *[0] * 5]
        with pytest.raises(DataError):
            told.fetch(tmp_path / "again.bin", host.url)
        (tmp_path / "again.bin.part").write_bytes(CONTENT)
        host.asked = []
        told.fetch(tmp_path / "again.bin", host.url)
        assert host.asked == []
        assert (tmp_path / "again.bin").read_bytes() == CONTENT

    def test_the_next_address_is_tried(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.answers = [404]
        told.fetch(tmp_path / "file.bin", host.url, host.url.replace("file", "copy"))
        assert (tmp_path / "file.bin").read_bytes() == CONTENT

    def test_a_short_answer_is_noticed_without_the_library(
        self, host: Host, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.cuts, given = [4000], requests.Session.get

        def unchecked(*args: Any, **kwargs: Any) -> requests.Response:
            response = given(*args, **kwargs)
            response.raw.enforce_content_length = False  # as urllib3 1.26 does by itself
            return response

        monkeypatch.setattr(requests.Session, "get", unchecked)
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert "broke off after 4000 of 10240 bytes" in told.lines[0]

    def test_a_host_that_hangs_up_is_asked_again(self, host: Host, told: Told, tmp_path: Path) -> None:
        host.answers = [HANGS_UP] * 4
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert told.waits == [1, 2, 4, 8]

    def test_a_host_that_was_there_is_waited_for(
        self, host: Host, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.cuts, calls, given = [4000], iter(range(100)), requests.Session.get

        def away_for_a_while(*args: Any, **kwargs: Any) -> requests.Response:
            if 0 < next(calls) < 4:
                raise requests.ConnectTimeout("timed out")
            return given(*args, **kwargs)

        monkeypatch.setattr(requests.Session, "get", away_for_a_while)
        told.fetch(tmp_path / "file.bin", host.url)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert host.asked == [None, "bytes=4000-"]

    def test_no_connection_at_all(self, told: Told, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no connection to 127\.0\.0\.1 \(.*refused.*\)\. By hand: ") as caught:
            told.fetch(tmp_path / "file.bin", "http://127.0.0.1:9/file.bin")
        assert "\n" not in str(caught.value)
        assert told.waits == [1]

    def test_a_full_disk_keeps_what_has_arrived(
        self, host: Host, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("densekd.data.download.os.fsync", full)
        monkeypatch.setattr("densekd.data.download.files.write_json", lambda path, value: None)
        with pytest.raises(DataError, match=r"^\S+file\.bin\.part: the disk is full; what has arrived is kept"):
            told.fetch(tmp_path / "file.bin", host.url, host.url)
        assert (len(host.asked), left(tmp_path)) == (1, ["file.bin.part"])


Entry = tuple[str, bytes]


def make_tar(path: Path, *entries: Entry | tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tarred:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tarred.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tarred.addfile(info, io.BytesIO(entry[1]))
    return path


def make_zip(path: Path, *entries: Entry | tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


FILES = (("top/set/a.png", b"a" * 3000), ("top/set/deep/b.png", b"bb"), ("top/other.txt", b"no"))


def quiet(*_: object) -> None:
    pass


class TestUnpack:
    @pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
    def test_the_wanted_folders_alone(self, tmp_path: Path, kind: str) -> None:
        made = {
            "zip": lambda path: make_zip(path, *FILES),
            "tar": lambda path: make_tar(path, special("top", tarfile.DIRTYPE), *FILES),
            "tgz": lambda path: make_tar(path, *FILES, mode="w:gz"),
        }[kind](tmp_path / "archive")
        moves: list[tuple[str, int, int | None]] = []
        unpack(made, tmp_path / "in", {"top/set": "new/name"}, lambda *move: moves.append(move))
        assert left(tmp_path / "in") == ["new/name/a.png", "new/name/deep/b.png"]
        assert (tmp_path / "in/new/name/a.png").read_bytes() == b"a" * 3000
        assert moves[-1] == ("unpacking archive", 3002, 3002)

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (("../out.png", b"x"), "'../out.png': a path that climbs out"),
            (("top/set/../../../out.png", b"x"), "climbs out"),
            (("/tmp/out.png", b"x"), "'/tmp/out.png': an absolute path"),
            (("C:/out.png", b"x"), "an absolute path"),
            (("top\\..\\..\\out.png", b"x"), "climbs out"),
            (("top/set/a.png", b"x"), "'top/set/a.png': there twice"),
        ],
    )
    @pytest.mark.parametrize("make", [make_zip, make_tar])
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_name_that_is_not_harmless(
        self, tmp_path: Path, make: Callable[..., Path], bad: Entry, words: str
    ) -> None:
        archive = make(tmp_path / "archive", *FILES, bad)
        with pytest.raises(DataError, match="not unpacked, nothing was written") as caught:
            unpack(archive, tmp_path / "in", {"top/set": "set"}, quiet)
        assert words in str(caught.value)
        assert left(tmp_path) == ["archive"]

    @pytest.mark.parametrize(
        ("kind", "target", "words"),
        [
            (tarfile.SYMTYPE, "../../etc", "a link to ../../etc"),
            (tarfile.SYMTYPE, "a.png", "a link to a.png"),
            (tarfile.LNKTYPE, "/etc/passwd", "a link to /etc/passwd"),
            (tarfile.CHRTYPE, "", "a device or another special file"),
            (tarfile.FIFOTYPE, "", "a device or another special file"),
        ],
    )
    def test_a_tar_with_links_and_devices(self, tmp_path: Path, kind: bytes, target: str, words: str) -> None:
        archive = make_tar(tmp_path / "archive", *FILES, special("top/set/x", kind, target), ("top/set/x/y.png", b"y"))
        with pytest.raises(DataError, match="nothing was written") as caught:
            unpack(archive, tmp_path / "in", {"top/set": "set"}, quiet)
        assert f"'top/set/x': {words}" in str(caught.value)
        assert left(tmp_path) == ["archive"]

    def test_a_zip_with_a_link(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "archive", *FILES, (zip_link("top/set/x"), b"/etc"))
        with pytest.raises(DataError, match="'top/set/x': a link"):
            unpack(archive, tmp_path / "in", {"top/set": "set"}, quiet)
        assert left(tmp_path) == ["archive"]

    def test_many_names_are_counted(self, tmp_path: Path) -> None:
        archive = make_tar(tmp_path / "archive", *((f"../{number}", b"") for number in range(13)))
        with pytest.raises(DataError, match=r"and 3 more$"):
            unpack(archive, tmp_path / "in", {"top/set": "set"}, quiet)

    @pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
    def test_an_archive_cut_short(self, tmp_path: Path, kind: str) -> None:
        noise = hashlib.shake_256(b"noise").digest(60_000)
        entries = (("top/set/a.png", noise), ("top/set/b.png", noise))
        path = tmp_path / "archive"
        made = make_zip(path, *entries) if kind == "zip" else make_tar(path, *entries, mode=f"w:{kind[1:-1] and 'gz'}")
        made.write_bytes(made.read_bytes()[:90_000])
        with pytest.raises(DataError, match="damaged, or cut short"):
            unpack(made, tmp_path / "in", {"top/set": "set"}, quiet)

    def test_a_changed_byte_in_a_zip(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "archive", ("top/set/a.png", b"a" * 3000))
        damaged = bytearray(archive.read_bytes())
        damaged[1000] ^= 1
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged, or cut short \(Bad CRC-32"):
            unpack(archive, tmp_path / "in", {"top/set": "set"}, quiet)

    def test_no_archive_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "archive").write_text("<html>please log in</html>" * 100)
        with pytest.raises(DataError, match="damaged, or cut short"):
            unpack(tmp_path / "archive", tmp_path / "in", {"top/set": "set"}, quiet)

    def test_another_archive(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "archive", *FILES)
        with pytest.raises(DataError, match="holds no files in top/none: it is another archive"):
            unpack(archive, tmp_path / "in", {"top/set": "set", "top/none": "none"}, quiet)

    def test_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("densekd.data.unpack.shutil.disk_usage", lambda _: usage(0, 0, 3001))
        with pytest.raises(DataError, match=r"3 kB are needed to unpack archive, and 3 kB are free"):
            unpack(make_zip(tmp_path / "archive", *FILES), tmp_path / "in", {"top/set": "set"}, quiet)
        assert left(tmp_path) == ["archive"]

    @pytest.mark.parametrize("kind", ["zip", "tgz"])
    def test_an_archive_that_would_fill_the_disk(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("densekd.data.unpack._SMALL", 10_000)
        path, entries = tmp_path / "archive", [(f"top/set/{number}.png", bytes(2_000_000)) for number in range(2)]
        if kind == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
                for name, content in entries:
                    zipped.writestr(name, content)
        else:
            make_tar(path, *entries, mode="w:gz")
        words = r"archive: 4\.\d+ kB that would become 4 MB: no archive of pictures grows more than 100 times; nothing"
        with pytest.raises(DataError, match=words):
            unpack(path, tmp_path / "in", {"top/set": "set"}, quiet)
        assert left(tmp_path) == ["archive"]

    def test_a_file_that_holds_more_than_it_declares(self, tmp_path: Path) -> None:
        path = make_zip(tmp_path / "archive", ("top/set/a.png", bytes(100_000)))
        with zipfile.ZipFile(path, "a") as zipped:
            zipped.filelist[0].file_size = 10
            zipped._didModify = True  # type: ignore[attr-defined]  # so that the list is written anew
        with pytest.raises(DataError, match="damaged, or cut short"):
            unpack(path, tmp_path / "in", {"top/set": "set"}, quiet)
        assert sum(file.stat().st_size for file in (tmp_path / "in").rglob("*.png")) <= 10


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1_420_000_000, "1.42 GB"), (250_000_000, "250 MB")]
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert gigabytes(count) == words


def tiny(host: Host, archive: Path, **changes: Any) -> Source:
    """A data set of two files at the host, as its archive on disk has them."""
    host.content = archive.read_bytes()
    archive.unlink()
    described = Archive(
        name="set.zip",
        urls=(host.url,),
        size=len(host.content),
        wanted={"top/set": "pictures"},
        counts=(Count("pictures", ".png", 2),),
        digest=("md5", hashlib.md5(host.content).hexdigest()),
        digest_from="somebody",
    )
    return Source("Tiny", "http://home", "free", (replace(described, **changes),))


class TestGet:
    @pytest.fixture
    def source(self, host: Host, tmp_path: Path) -> Source:
        return tiny(host, make_zip(tmp_path / "made.zip", *FILES))

    def bring(self, source: Source, root: Path, told: Told, keep: bool = False) -> list[Any]:
        return get(source, root, keep_archives=keep, moved=told.moved, said=told.lines.append)

    def test_all_at_once_and_then_never_again(self, host: Host, source: Source, told: Told, tmp_path: Path) -> None:
        root = tmp_path / "root"
        assert [step.state for step in plan(source, root)] == ["to download"]
        (placed,) = self.bring(source, root, told)
        assert placed.sha256 == hashlib.sha256(host.content).hexdigest()
        assert left(root) == ["pictures/a.png", "pictures/deep/b.png"]
        assert [step.state for step in plan(source, root)] == ["in place"]
        (again,) = self.bring(source, root, told)
        assert (again.state, again.sha256, len(host.asked)) == ("in place", None, 1)
        assert told.lines == []

    def test_one_process_at_a_time(self, host: Host, source: Source, told: Told, tmp_path: Path) -> None:
        fcntl = pytest.importorskip("fcntl")
        root = tmp_path / "root"
        root.mkdir()
        handle = os.open(root, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is bringing a data set there; wait for it"):
            self.bring(source, root, told)
        assert (host.asked, left(root)) == ([], [])
        os.close(handle)  # as the end of the process does
        self.bring(source, root, told)

    def test_the_archive_is_kept_if_asked(self, source: Source, told: Told, tmp_path: Path) -> None:
        self.bring(source, tmp_path, told, keep=True)
        assert left(tmp_path) == ["pictures/a.png", "pictures/deep/b.png", "set.zip"]

    def test_an_archive_that_is_there_is_used_and_left(
        self, host: Host, source: Source, told: Told, tmp_path: Path
    ) -> None:
        (tmp_path / "set.zip").write_bytes(host.content)
        self.bring(source, tmp_path, told)
        assert host.asked == []
        assert left(tmp_path) == ["pictures/a.png", "pictures/deep/b.png", "set.zip"]
        assert "left where it was" in told.lines[0]

    def test_another_checksum_unpacks_nothing(self, host: Host, source: Source, told: Told, tmp_path: Path) -> None:
        host.content = make_zip(tmp_path / "other.zip", *FILES, ("more", b"")).read_bytes()
        root = tmp_path / "root"
        with pytest.raises(DataError, match=r"its MD5 is \w{32}, but somebody publishes \w{32}.*nothing was unpacked"):
            self.bring(source, root, told)
        assert left(root) == ["set.zip.refused"]

    def test_without_a_checksum_the_files_are_counted(self, host: Host, told: Told, tmp_path: Path) -> None:
        source = tiny(host, make_zip(tmp_path / "made.zip", *FILES), digest=None, size=None)
        self.bring(source, tmp_path / "good", told)
        assert "no checksum is published" in told.lines[0]
        assert hashlib.sha256(host.content).hexdigest() in told.lines[0]
        host.content = make_zip(tmp_path / "less.zip", FILES[0]).read_bytes()
        with pytest.raises(
            DataError, match=r"not put in place; it holds in pictures 1 files \.png where 2 are expected"
        ):
            self.bring(source, tmp_path / "bad", told)
        assert left(tmp_path / "bad") == ["set.zip"]

    def test_a_folder_that_is_there_is_never_touched(self, source: Source, told: Told, tmp_path: Path) -> None:
        (tmp_path / "pictures").mkdir()
        (tmp_path / "pictures" / "mine.png").write_text("mine")
        with pytest.raises(
            DataError, match=r"1 files \.png, expected 2: .*not touched: move .*pictures away, or .*--root"
        ):
            self.bring(source, tmp_path, told)
        assert left(tmp_path) == ["pictures/mine.png"]

    def test_more_files_than_expected_are_in_place(self, source: Source, told: Told, tmp_path: Path) -> None:
        self.bring(source, tmp_path, told)
        (tmp_path / "pictures" / "mine.png").write_text("mine")
        assert [step.state for step in plan(source, tmp_path)] == ["in place"]

    def test_a_bad_archive_leaves_nothing_unpacked(self, host: Host, told: Told, tmp_path: Path) -> None:
        source = tiny(host, make_zip(tmp_path / "made.zip", *FILES, ("../out.png", b"x")))
        with pytest.raises(DataError, match="climbs out"):
            self.bring(source, tmp_path / "root", told)
        assert left(tmp_path) == ["root/set.zip"]

    def test_a_stop_while_unpacking_leaves_nothing_behind(self, source: Source, told: Told, tmp_path: Path) -> None:
        def stop(what: str, done: int, total: int | None) -> None:
            if what.startswith("unpacking") and done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            get(source, tmp_path, keep_archives=False, moved=stop, said=quiet)
        assert left(tmp_path) == ["set.zip"]
        self.bring(source, tmp_path, told)
        assert left(tmp_path) == ["pictures/a.png", "pictures/deep/b.png", "set.zip"]

    def test_no_room_is_said_before_the_first_byte(
        self, host: Host, source: Source, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "total used free")
        needed = 2 * len(host.content)
        monkeypatch.setattr("densekd.data.unpack.shutil.disk_usage", lambda _: usage(0, 0, needed - 1))
        with pytest.raises(DataError, match=r"are needed to download and unpack it, and .* are free"):
            self.bring(source, tmp_path, told)
        assert host.asked == []
        monkeypatch.setattr("densekd.data.unpack.shutil.disk_usage", lambda _: usage(0, 0, max(needed, 3002)))
        self.bring(source, tmp_path, told)

    def test_by_hand(self, host: Host, told: Told, tmp_path: Path) -> None:
        source = replace(
            tiny(host, make_zip(tmp_path / "made.zip", *FILES), urls=()),
            by_hand=("log in for {missing}", "go to {root}"),
        )
        root = tmp_path / "root"
        with pytest.raises(DataError, match="no download without an account") as caught:
            self.bring(source, root, told)
        assert f"By hand:\n  1. log in for set.zip\n  2. go to {root}\n  3. give this command again" in str(
            caught.value
        )
        root.mkdir()
        (root / "set.zip").write_bytes(host.content)
        self.bring(source, root, told)
        assert left(root) == ["pictures/a.png", "pictures/deep/b.png", "set.zip"]


class TestSources:
    def test_every_address_and_checksum_has_its_form(self) -> None:
        lengths = {"md5": 32, "sha1": 40, "sha256": 64}
        for source in SOURCES.values():
            assert bool(source.by_hand) == (not source.archives[0].urls)
            for archive in source.archives:
                assert all(url.startswith(("http://", "https://")) for url in archive.urls)
                assert archive.counts
                for count in archive.counts:
                    assert any(f"{count.folder}/".startswith(f"{new}/") for new in archive.wanted.values())
                if archive.digest is not None:
                    assert len(bytes.fromhex(archive.digest[1])) * 2 == lengths[archive.digest[0]]
                    assert archive.digest_from

    @pytest.mark.parametrize("name", SOURCES)
    def test_what_is_unpacked_is_the_layout_that_a_recipe_reads(self, tmp_path: Path, name: str) -> None:
        source, benchmark = SOURCES[name], SPECS[name].benchmark
        counts = [count for archive in source.archives for count in archive.counts]
        for count in counts:
            (tmp_path / count.folder).mkdir(parents=True, exist_ok=True)
        folder = tmp_path / source.root
        inside = [tmp_path / new for archive in source.archives for new in archive.wanted.values()]
        # Lists come in the same archive as the images.
        missing = [folder / path for path in lacking(benchmark, folder, benchmark.parts)]
        assert all(any(new in path.parents for new in inside) and path.suffix == ".txt" for path in missing)
        official = {benchmark.counts[part] for part in benchmark.parts}
        if name != "voc":  # its archive holds the images of other tasks too
            assert official <= {count.files for count in counts}

    @pytest.mark.slow
    def test_the_checksums_that_torchvision_has_too(self) -> None:
        from torchvision.datasets import SBDataset
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        voc, sbd = SOURCES["voc"].archives
        assert voc.digest == ("md5", DATASET_YEAR_DICT["2012"]["md5"])
        assert DATASET_YEAR_DICT["2012"]["url"] in voc.urls
        assert sbd.digest == ("md5", SBDataset.md5)
        assert SBDataset.url in sbd.urls

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ArgumentError, match="unknown; did you mean 'cityscapes'"):
            source_of("citiscapes")
