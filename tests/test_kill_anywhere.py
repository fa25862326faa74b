"""A run that is killed at any operation on a file, or at any moment, goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densekd import files
from densekd.errors import CheckpointError
from densekd.models.run_student import require_recorded
from densekd.runs import Run, distill
from densekd.runs.execute import Quiet
from killkit import Operation, dies_at, forked, in_a_child, sums, unflushed, watched
from runkit import EXACT, distillation, log_without_times, make_place

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

KEPT = ("student.safetensors", "evaluations.csv", "confusion.json")
Points = list[tuple[Operation, bool]]


def asked(place: Path, *, looks: bool = False, page: bool = False) -> dict[str, Any]:
    """Three steps of a distillation with checkpoints and evaluations; with looks and a page on demand."""
    found = distillation(place, place)
    found["teacher"] = {"model": f"{place}/nets.py:teacher", "untrained": True, "engine": EXACT}
    found["train"] |= {"steps": 3, "batch_size": 2}
    if looks or page:
        found["report"] = {"page": page, "images": 1, "channels": 1}
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("data"), train=4, val=2)


class Known:
    """A run that nothing disturbed, and the operations it made."""

    def __init__(self, recipe: dict[str, Any], folder: Path) -> None:
        self.recipe = recipe
        with unflushed():
            distill(recipe, out=folder.with_name("first"))  # what only the first run of a process does
        with watched() as watch:
            self.run = distill(recipe, out=folder)
        self.operations = watch.seen

    def points(self) -> Points:
        """Before each operation, and in the middle of each write; after the last one the run is done."""
        return [(at, half) for at in self.operations for half in ((False, True) if at.kind == "write" else (False,))]

    def kill(self, folder: Path, point: tuple[Operation, bool]) -> None:
        def doomed() -> None:
            with watched(dies_at(point[0].number, point[1])):
                distill(self.recipe, out=folder)

        status = in_a_child(doomed)
        assert os.WIFSIGNALED(status), point
        assert os.WTERMSIG(status) == signal.SIGKILL
        expect_no_blame(folder, point)

    def go_on(self, folder: Path, point: object) -> None:
        """Resume where there is anything to resume, and see that the end is the same."""
        with unflushed():
            run = distill(self.recipe, out=folder, resume=folder.exists())
        self.expect_same(run, point)

    def expect_same(self, run: Run, point: object) -> None:
        whole, mine = self.run, run
        assert mine.record.status == "done", point
        assert log_without_times(mine.path) == log_without_times(whole.path), point
        assert (mine.record.final, mine.record.best) == (whole.record.final, whole.record.best), point
        found, expected = sums(mine.path), sums(whole.path)
        assert mine.record.student_sha256 == files.sha256(found["student.safetensors"]), point
        kept = [name for name in expected if name in KEPT or Path(name).parts[0] in ("looks", "checkpoints")]
        for name in kept:
            assert found[name] == expected[name], (point, name)
        assert set(found) == set(expected), point
        assert not list(mine.path.rglob(".*")), point


def expect_no_blame(folder: Path, point: object) -> None:
    """A student that a kill left is as recorded, or that of a run that is not finished; it is not called damaged."""
    said = ""
    try:
        require_recorded(folder / "student.safetensors")
    except FileNotFoundError:
        return  # not written yet
    except CheckpointError as error:
        said = str(error)
    assert not said or "the run is not finished" in said, point


@pytest.fixture(scope="module")
def known(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(asked(place), tmp_path_factory.mktemp("known") / "run")


@pytest.fixture(scope="module")
def shown(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(asked(place, page=True), tmp_path_factory.mktemp("shown") / "run")


@pytest.fixture(scope="module")
def looked(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(asked(place, looks=True), tmp_path_factory.mktemp("looked") / "run")


def since(known: Known, name: str) -> Points:
    """The points from shortly before the first operation on what is called so: looks, page."""
    first = made(known, name)
    return [point for point in known.points() if point[0].number >= first - 2]


def made(known: Known, name: str) -> int:
    """The number of the first operation that makes what is called so; that it is not there is looked at before."""
    return next(at.number for at in known.operations if at.kind in ("open", "mkdir") and name in at.path)


@pytest.mark.slow
class TestSome:
    def test_what_a_run_does_with_files(self, shown: Known) -> None:
        kinds = {at.kind for at in shown.operations}
        assert kinds >= {"open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir"}
        names = {Path(at.path).name.removeprefix(".").split(".")[0] for at in shown.operations}
        assert names >= {"recipe", "record", "log", "evaluations", "confusion", "student", "latest", "looks", "report"}

    def test_at_an_operation_of_each_kind(self, known: Known, tmp_path: Path) -> None:
        points, generator = known.points(), random.Random(7)
        kinds = sorted({(point[0].kind, point[1]) for point in points})
        some = [generator.choice([one for one in points if (one[0].kind, one[1]) == kind]) for kind in kinds]
        for point in [points[0], *some, points[-1]]:
            folder = tmp_path / f"{point[0].number}{point[1]}"
            known.kill(folder, point)
            known.go_on(folder, point)

    def test_while_the_looks_and_the_page_are_made(self, shown: Known, tmp_path: Path) -> None:
        for point in (since(shown, "looks")[3], since(shown, "report.html")[4]):
            folder = tmp_path / f"{point[0].number}{point[1]}"
            shown.kill(folder, point)
            shown.go_on(folder, point)

    def test_a_run_without_its_page_gets_it(self, shown: Known, tmp_path: Path) -> None:
        last = [at for at in shown.operations if at.kind == "open" and "report.html" in at.path][-1]
        shown.kill(tmp_path / "run", (last, False))
        assert Run.load(tmp_path / "run").record.status == "done"
        assert not (tmp_path / "run" / "report.html").exists()
        said: list[str] = []
        watch = Quiet()
        watch.said = said.append  # type: ignore[method-assign]
        distill(shown.recipe, out=tmp_path / "run", resume=True, progress=watch)
        assert f"{tmp_path / 'run' / 'report.html'}: was missing; written again" in said
        shown.expect_same(Run.load(tmp_path / "run"), last)

    def test_begun_again_by_force(self, known: Known, tmp_path: Path) -> None:
        """Killed while an older run of the same recipe is cleared away: whatever is left can be gone on with."""
        expect_cleared(known, tmp_path, lambda points: [points[0], points[4], points[-1]])

    def test_while_a_resume_sweeps(self, known: Known, tmp_path: Path) -> None:
        def resumed() -> None:
            distill(known.recipe, out=folder, resume=True)

        half = [point for point in known.points() if point[1] and "step-00000002" in point[0].path][1]
        for number in (0, 3, 8):
            folder = tmp_path / str(number)
            known.kill(folder, half)

            def doomed(number: int = number) -> None:
                with watched(dies_at(number)):
                    resumed()

            assert os.WIFSIGNALED(in_a_child(doomed))
            known.go_on(folder, number)


def expect_cleared(known: Known, root: Path, choose: Callable[[list[int]], list[int]]) -> None:
    def again(folder: Path) -> None:
        distill(known.recipe, out=folder, force=True)

    with unflushed():
        distill(known.recipe, out=root / "first")
    status = in_a_child(lambda: _written_down(root / "count", lambda: again(root / "first")))
    assert status == 0
    count = json.loads((root / "count").read_text())
    for number in choose(list(range(count))):
        folder = root / str(number)
        with unflushed():
            distill(known.recipe, out=folder)

        def doomed(folder: Path = folder, number: int = number) -> None:
            with watched(dies_at(number)):
                again(folder)

        assert os.WIFSIGNALED(in_a_child(doomed))
        known.go_on(folder, number)


def _written_down(path: Path, work: Callable[[], Any]) -> None:
    """How many operations it takes until the folder has its recipe again."""
    with watched() as watch:
        work()
    first = next(at.number for at in watch.seen if at.kind == "replace" and "recipe.yaml" in at.path)
    path.write_text(json.dumps(first + 2))


@pytest.mark.long
@pytest.mark.timeout(1200)
class TestAll:
    def test_at_every_operation(self, known: Known, tmp_path: Path, record_property: Callable[..., None]) -> None:
        points = known.points()
        for point in points:
            folder = tmp_path / f"{point[0].number}{point[1]}"
            known.kill(folder, point)
            known.go_on(folder, point)
        assert len(points) > 200
        record_property("kill points of a run", len(points))

    def test_at_every_operation_of_looks_and_page(
        self, looked: Known, shown: Known, tmp_path: Path, record_property: Callable[..., None]
    ) -> None:
        # Drawing a page takes most of the time of such a run: looks are tried without.
        points = {"looks": since(looked, "looks"), "report.html": since(shown, "report.html")}
        for (name, some), known in zip(points.items(), (looked, shown), strict=True):
            for point in some:
                folder = tmp_path / f"{name}{point[0].number}{point[1]}"
                known.kill(folder, point)
                known.go_on(folder, point)
        count = sum(map(len, points.values()))
        assert count > 20
        record_property("kill points of looks and page", count)

    def test_begun_again_by_force(self, known: Known, tmp_path: Path) -> None:
        expect_cleared(known, tmp_path, lambda points: points)

    def test_at_thirty_moments(self, known: Known, tmp_path: Path, record_property: Callable[..., None]) -> None:
        """SIGKILL after a time drawn from as long as the run takes: one run each, and runs killed again and again."""
        generator = random.Random(30)

        def work(folder: Path) -> None:
            with unflushed():
                distill(known.recipe, out=folder, resume=folder.exists())

        def killed(folder: Path, seconds: float) -> bool:
            child = forked(lambda: work(folder))
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            return os.WIFSIGNALED(os.waitpid(child, 0)[1])

        begun = time.monotonic()
        assert in_a_child(lambda: work(tmp_path / "timed")) == 0
        length = time.monotonic() - begun
        once = again = 0
        while once < 30:
            folder = tmp_path / f"once{once}"
            if killed(folder, generator.uniform(0.1, 0.9) * length):
                known.go_on(folder, f"moment {once}")
                once += 1
            else:
                length *= 0.9  # the machine is quicker than it was
        while again < 30:
            folder = tmp_path / f"again{again}"
            while killed(folder, generator.uniform(0.2, 1.1) * length) and again < 30:
                again += 1
            known.go_on(folder, f"chain {again}")
            again += 1
        record_property("moments of SIGKILL", once + again)


class TestOrder:
    """What a power cut needs: content before the name, the name before anything that builds on it."""

    def order(self, work: Callable[[], Any]) -> list[Operation]:
        with watched() as watch:
            work()
        return watch.seen

    def expect_flushed(self, seen: list[Operation]) -> None:
        written: dict[str, bool] = {}
        for number, at in enumerate(seen):
            if at.kind == "write":
                written[at.path] = False
            elif at.kind == "fsync":
                written[at.path] = True
            elif at.kind in ("rename", "replace"):
                inside = {path: flushed for path, flushed in written.items() if path.startswith(at.path)}
                assert all(inside.values()), at
                later = [one for one in seen[number + 1 :] if one.kind != "rename"]
                assert (later[0].kind, later[0].path) == ("fsync", str(Path(at.path).parent)), at

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        seen = self.order(lambda: files.write_json(path, 1))
        assert [at.kind for at in seen] == ["open", "write", "fsync", "replace", "fsync"]
        self.expect_flushed(seen)

    def test_new_folders(self, tmp_path: Path) -> None:
        """Each is there before anything is in it."""
        seen = self.order(lambda: files.write_json(tmp_path / "a" / "b" / "x.json", 1))
        made = [(at.kind, Path(at.path)) for at in seen[:4]]
        assert made == [
            ("mkdir", tmp_path / "a"),
            ("fsync", tmp_path),
            ("mkdir", tmp_path / "a" / "b"),
            ("fsync", tmp_path / "a"),
        ]
        self.expect_flushed(seen[4:])

    def test_a_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "step-1"
        for content in ({"a": b"1", "b": b"2"}, {"a": b"3"}):
            self.expect_flushed(self.order(lambda content=content: files.write_folder(path, content)))
        assert (path / "a").read_bytes() == b"3"

    def test_a_removal(self, tmp_path: Path) -> None:
        files.write_text(tmp_path / "x", "1")
        seen = self.order(lambda: files.remove(tmp_path / "x"))
        assert [at.kind for at in seen] == ["unlink", "fsync"]
        assert self.order(lambda: files.remove(tmp_path / "x"))[1:] == []

    def test_a_removal_of_a_folder(self, tmp_path: Path) -> None:
        """Its name is gone before any of its files."""
        files.write_folder(tmp_path / "step-1", {"a": b"1", "b": b"2"})
        seen = self.order(lambda: files.remove_folder(tmp_path / "step-1"))
        assert [at.kind for at in seen] == ["rename", "fsync", "unlink", "unlink", "rmdir"]
        self.expect_flushed(seen)
