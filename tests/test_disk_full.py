"""No space left: the file is named, what was saved stands, and the run goes on once there is room."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densekd import files
from densekd.cli.guard import guarded
from densekd.errors import ResourceError
from densekd.failures import explained
from densekd.runs import Run, distill
from densekd.runs.execute import Quiet
from densekd.training.checkpointer import Checkpointer
from densekd.training.recorder import Recorder
from killkit import TAKES_ROOM, Operation, full_from, in_a_child, unflushed, watched
from runkit import make_place
from test_kill_anywhere import Known, asked, made

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="tried in forked processes")
TOLD = re.compile(r"error: (?P<file>/\S+?): could not be written: no space left on the disk; make room there")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("data"), train=4, val=2)


@pytest.fixture(scope="module")
def paged(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(asked(place, page=True), tmp_path_factory.mktemp("paged") / "run")


@pytest.fixture(scope="module")
def known(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(asked(place, looks=True), tmp_path_factory.mktemp("known") / "run")


class Telling(Quiet):
    def said(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")


def command(known: Known, folder: Path, out: Path, act: Any = None, progress: Quiet | None = None) -> None:
    """What a command does: exit code and words are left in `out`; runs in a child."""
    said, code = io.StringIO(), 0

    def work() -> None:
        with watched(act) if act else unflushed():  # not what the command does around it, or the numbers would differ
            distill(known.recipe, out=folder, progress=progress or Telling())

    with contextlib.redirect_stderr(said):
        try:
            guarded(work)()
        except SystemExit as end:
            code = int(end.code or 0)
    out.write_text(json.dumps([code, said.getvalue()]))


def expect_told(known: Known, root: Path, at: Operation, until: int | None) -> None:
    """A disk that is full from an operation on, until another: told, nothing lost, gone on with."""
    folder, out = root / "run", root / "out"
    root.mkdir()
    assert in_a_child(lambda: command(known, folder, out, full_from(at.number, until))) == 0
    code, said = json.loads(out.read_text())
    checkpoints = sorted((folder / "checkpoints").glob("step-*")) if folder.exists() else []
    assert [Checkpointer.damage(path) for path in checkpoints] == [None] * len(checkpoints), at
    record = Run.load(folder).record if (folder / "record.json").is_file() else None
    if at == known.operations[-1]:  # the folder's flush, with the finished record in it
        assert (code, record.status) == (0, "done")
        assert "the run is done, but the disk did not confirm the last write" in said
    elif code == 0:  # the looks, which a run does without
        assert (record.status, at.number >= made(known, "looks")) == ("done", True), (at, said)
        assert any("no space left" in line for line in record.warnings), at
    else:
        assert code == 2, (at, said)
        told = TOLD.search(said)
        named = told is not None and not files.is_temporary(Path(told["file"]).name)
        assert named or "cannot be written" in said, said
        assert record is None or record.status != "done", at
        known.go_on(folder, at)


def refused(known: Known) -> list[Operation]:
    """What takes room in the run's folder: that a file can be made there is tried before, in more than one way."""
    return [at for at in known.operations if at.kind in TAKES_ROOM and str(known.run.path) in at.path]


@pytest.mark.slow
@forks
class TestSome:
    def test_at_the_last_operation(self, known: Known, tmp_path: Path) -> None:
        expect_told(known, tmp_path / "last", known.operations[-1], until=None)

    def test_the_page_and_the_line_about_it_are_left_out(self, paged: Known, tmp_path: Path) -> None:
        """From the page on nothing can be written: the run is done, and a resume writes the page."""
        at = next(one for one in paged.operations if one.kind == "open" and "report.html" in one.path)
        folder, out = tmp_path / "run", tmp_path / "out"
        assert in_a_child(lambda: command(paged, folder, out, full_from(at.number))) == 0
        code, said = json.loads(out.read_text())
        assert (code, Run.load(folder).record.status) == (0, "done"), said
        assert "report.html could not be written, all else is there" in said
        assert f"{folder / 'record.json'}: does not keep that line: No space left on device" in said
        paged.go_on(folder, at)

    def test_at_some_operations(self, known: Known, tmp_path: Path) -> None:
        some = refused(known)
        step = len(some) // 6
        for at in some[3::step]:
            expect_told(known, tmp_path / f"{at.number}", at, until=None)

    def test_rows_and_words_are_kept_where_they_still_can_be(self, known: Known, tmp_path: Path) -> None:
        """Full in the middle of a checkpoint, whose half is given up again: there is room for log and record."""
        at = next(one for one in refused(known) if one.kind == "write" and "step-00000002" in one.path)
        folder, out = tmp_path / "run", tmp_path / "out"
        assert in_a_child(lambda: command(known, folder, out, full_from(at.number, at.number + 1))) == 0
        code, said = json.loads(out.read_text())
        path = folder / "checkpoints" / "step-00000002"
        assert (code, f"error: {path}: could not be written: no space left on the disk" in said) == (2, True)
        record = Run.load(folder).record
        assert (record.status, record.error.split(":")[0]) == ("failed", "ResourceError")
        assert str(path) in record.error
        assert [line.split(",")[0] for line in (folder / "log.csv").read_text().splitlines()] == ["step", "1", "2"]
        known.go_on(folder, at)

    def test_files_may_not_grow(self, known: Known, tmp_path: Path) -> None:
        """The system's own refusal, half-way through a write."""

        class Limited(Quiet):
            def step(self, taken: int, steps: int, result: object) -> None:
                if taken == 2:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))

        def work() -> None:
            code, said = 0, io.StringIO()
            with contextlib.redirect_stderr(said):
                try:
                    guarded(lambda: distill(known.recipe, out=folder, progress=Limited()))()
                except SystemExit as end:
                    code = int(end.code or 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            out.write_text(json.dumps([code, said.getvalue()]))

        folder, out = tmp_path / "run", tmp_path / "out"
        assert in_a_child(work) == 0
        code, said = json.loads(out.read_text())
        assert (code, "no file may become so large here; raise the limit (ulimit -f)" in said) == (2, True), said
        assert Checkpointer.damage(folder / "checkpoints" / "step-00000001") is None
        known.go_on(folder, "limit")

    def test_a_small_file_system(self, known: Known, tmp_path: Path) -> None:
        """A tmpfs that takes a checkpoint and not the whole run, then all of it; seen by one process alone."""
        pages = [-(-path.stat().st_size // 4096) for path in known.run.path.rglob("*") if path.is_file()]
        whole, mounted, out = 4096 * sum(pages), tmp_path / "small", tmp_path / "out"
        mounted.mkdir()

        def work() -> None:
            if not alone() or not mount(mounted, whole):
                out.write_text(json.dumps("no leave to mount a file system here"))
                return
            for tenth in range(1, 10):
                run = mounted / f"run{tenth}"
                assert mount(mounted, tenth * whole // 10 + 4096, again=True)
                command(known, run, out)
                if list((run / "checkpoints").glob("step-*")):
                    break
                files.remove_folder(run)
            code, said = json.loads(out.read_text())
            told = TOLD.search(said)
            assert code == 2, said
            assert told is not None, said
            assert told["file"].startswith(str(run))
            assert mount(mounted, 8 * whole, again=True)
            known.go_on(run, "tmpfs")
            out.write_text(json.dumps(""))

        assert in_a_child(work) == 0
        why = json.loads(out.read_text())
        if why:
            pytest.skip(why)


def alone() -> bool:
    """Give this process mounts of its own; whether it may have them."""
    libc = ctypes.CDLL(None, use_errno=True)
    mounts, users, private = 0x20000, 0x10000000, (1 << 18) | (1 << 14)
    unshared = libc.unshare(mounts if os.geteuid() == 0 else mounts | users) == 0
    return unshared and libc.mount(None, b"/", None, private, None) == 0


def mount(folder: Path, size: int, *, again: bool = False) -> bool:
    """Mount a tmpfs of so many bytes, or change its size; whether that worked."""
    libc, remount = ctypes.CDLL(None, use_errno=True), 32
    options = f"size={size}".encode()
    return bool(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", remount if again else 0, options) == 0)


@pytest.mark.long
@pytest.mark.timeout(1200)
@forks
@pytest.mark.parametrize("once", [False, True], ids=["from then on", "once"])
def test_at_every_operation(known: Known, tmp_path: Path, once: bool, record_property: Callable[..., None]) -> None:
    some = refused(known)
    if once:  # that a folder which is there is not made once more is no error
        some = [at for at in some if at.kind != "mkdir"][::3]
    for at in some:
        expect_told(known, tmp_path / f"{at.number}", at, until=at.number + 1 if once else None)
    assert len(some) > (50 if once else 150)
    record_property(f"refused writes, {'once' if once else 'from then on'}", len(some))


class TestWords:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (errno.ENOSPC, r"a/x\.json: could not be written: no space left on the disk; make room there, and give"),
            (errno.EDQUOT, "your quota of the disk is used up; make room there"),
            (errno.EFBIG, r"no file may become so large here; raise the limit \(ulimit -f\)"),
        ],
    )
    def test_an_error_of_the_disk(self, tmp_path: Path, code: int, words: str) -> None:
        for number in range(5):
            with watched(full_from(number, code=code)), pytest.raises(OSError) as caught:  # noqa: PT011
                files.write_json(tmp_path / f"{number}a" / "x.json", list(range(100)))
            found = explained(caught.value)
            assert isinstance(found, ResourceError)
            if number > 0:  # the first is the folder's own
                assert re.search(words, str(found)), found
            assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_resume_is_named_by_commands_that_have_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        def train(resume: bool = False) -> None:
            raise OSError(errno.ENOSPC, "full", "runs/x")

        def export() -> None:
            train()

        for command, end in ((train, " with --resume: the run goes on from its last checkpoint"), (export, "")):
            with pytest.raises(SystemExit) as caught:
                guarded(command)()
            assert caught.value.code == 2
            words = "could not be written: no space left on the disk; make room there, and give the command again"
            assert capsys.readouterr().err == f"error: runs/x: {words}{end}\n"

    def test_a_folder_and_a_growing_file_are_named(self, tmp_path: Path) -> None:
        def folder() -> None:
            files.write_folder(tmp_path / "step-1", {"a": b"1", "b": b"2"})

        def growing() -> None:
            file = files.GrowingFile(tmp_path / "x")
            try:
                file.write(b"12")
                file.finish()
            finally:
                file.discard()

        for work, name, operations in ((folder, "step-1", 9), (growing, "x", 2)):
            for number in range(1, operations):
                with watched(full_from(number)), pytest.raises(OSError) as caught:  # noqa: PT011
                    work()
                assert Path(caught.value.filename) == tmp_path / name, number
                assert list(tmp_path.iterdir()) == [], number

    def test_a_removal_that_cannot_be_flushed_names_what_went(self, tmp_path: Path) -> None:
        files.write_text(tmp_path / "x", "1")
        files.write_folder(tmp_path / "step-1", {"a": b"1"})
        for work, name in ((files.remove, "x"), (files.remove_folder, "step-1")):
            with watched(full_from(0)), pytest.raises(OSError) as caught:  # noqa: PT011
                work(tmp_path / name)
            assert Path(caught.value.filename) == tmp_path / name

    def test_other_errors_keep_their_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(FileExistsError) as caught:
            files.write_text(tmp_path / "file" / "x", "1")
        assert Path(caught.value.filename) == tmp_path / "file"
        assert explained(caught.value) is None

    def test_what_replaced_a_folder_is_given_up(self, tmp_path: Path) -> None:
        """Where the new one cannot take its place, the old one has its name again at once."""
        files.write_folder(tmp_path / "looks", {"old": b"1"})

        def act(operation: Operation, _half: object) -> None:
            if operation.kind == "rename" and ".part" in operation.path:
                raise OSError(errno.ENOSPC, "full")

        with watched(act), pytest.raises(OSError, match="full"):
            files.write_folder(tmp_path / "looks", {"new": b"2"})
        assert [path.name for path in tmp_path.rglob("*")] == ["looks", "old"]


def test_a_run_that_ends_early_says_what_it_could_not_write(tmp_path: Path) -> None:
    from reportkit import run_record

    recorder = Recorder(tmp_path, run_record(), 1)
    recorder.rows.append({"step": "1", "seconds": "1", "data_wait": "0"})
    with watched(full_from(0)):
        said = recorder.leave(status="failed", error="other")
    words = "could not be written: No space left on device"
    assert said == [f"{tmp_path / name}: {words}" for name in ("log.csv", "record.json")]
    assert recorder.leave(status="failed", error="other") == []
    assert files.read_json(tmp_path / "record.json")["error"] == "other"
