"""Sets of stored maps whose writers are killed: at every step they take, at any time, several at once."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from densekd import files
from densekd.errors import CacheError
from densekd.teacher_cache import MapReader, is_building
from densekd.teacher_cache.encoding import encode
from densekd.teacher_cache.summary import WHOLE
from killkit import forked
from mapstore import KEY, TAPS, fill, make_set, maps_of, samples, writer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")]

IMAGES = 25
ALL = [(view, index) for view in range(2) for index in range(IMAGES)]


def killed_at(step: int) -> None:
    """From now on this process kills itself before the step-th write, flush or rename."""
    left = step

    def counted(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for owner, name in ((files.GrowingFile, "write"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))


def expect_whole(folder: Path, pairs=ALL) -> None:
    with MapReader(folder, KEY) as reader:
        assert reader.verify() == []
        stored = [len(segment.index) for segment in reader._segments]
        assert sum(stored) == len(pairs)  # each once
        found = reader.read(samples(pairs))
        for row, pair in enumerate(pairs):
            assert reader.fingerprint(*pair) == 1000 * pair[0] + pair[1]
            for tap, tapped in maps_of(*pair).items():
                assert torch.equal(found[tap][row], encode(tapped, "bfloat16").back)
    assert not [entry.name for entry in folder.iterdir() if files.is_temporary(entry.name)]


def test_a_kill_before_any_single_step_loses_nothing_committed(tmp_path):
    def work(folder: Path, step: int) -> None:
        killed_at(step)
        with writer(folder) as made:
            fill(made, made.missing()[:3])
            made.commit()
            fill(made)
            made.finish()

    step, ended = 0, False
    while not ended:
        folder = tmp_path / f"{step}"
        process = forked(lambda folder=folder, step=step: work(folder, step))
        status = os.waitpid(process, 0)[1]
        ended = status == 0
        assert ended or os.WTERMSIG(status) == signal.SIGKILL
        with writer(folder) as made:
            # what a reader of an earlier state would have been told is never taken back
            assert len(made.missing()) in (0, 3, 6)
            fill(made)
            assert made.finish().whole
        expect_whole(folder, [(view, index) for view in range(2) for index in range(3)])
        step += 1
    assert step > 30


def test_killed_again_and_again_at_any_time(tmp_path):
    generator = random.Random(1)

    def work(folder: Path) -> None:
        with writer(folder, images=IMAGES, commit_bytes=generator.choice([1, 1500, 6000])) as made:
            for pair in made.missing():
                fill(made, [pair])
                time.sleep(0.001)
            made.finish()

    kills = 0
    while not (tmp_path / "set" / WHOLE).exists():
        process = forked(lambda: work(tmp_path / "set"))
        time.sleep(generator.uniform(0.0, 0.08))
        os.kill(process, signal.SIGKILL)
        kills += os.waitpid(process, 0)[1] != 0
        if not (tmp_path / "set" / WHOLE).exists():
            with pytest.raises(CacheError, match=r"not whole|holds no header|no stored maps there"):
                MapReader(tmp_path / "set", KEY)
    assert kills >= 2
    expect_whole(tmp_path / "set")
    make_set(tmp_path / "other", images=IMAGES)
    with MapReader(tmp_path / "set", KEY) as one, MapReader(tmp_path / "other", KEY) as other:
        assert one.summary.error == other.summary.error
        for tap in TAPS:
            assert torch.equal(one.read(samples(ALL))[tap], other.read(samples(ALL))[tap])


def test_ranks_at_once_one_killed_and_the_launch_repeated_with_others(tmp_path):
    generator = random.Random(2)

    def work(rank: int, world: int) -> None:
        with writer(tmp_path / "set", images=IMAGES, rank=rank, world=world, commit_bytes=1500) as made:
            for pair in made.missing():
                fill(made, [pair])
                time.sleep(0.001)
            made.finish()

    for world in (3, 2, 4):
        ranks = [forked(lambda rank=rank, world=world: work(rank, world)) for rank in range(world)]
        if world < 4:
            time.sleep(generator.uniform(0.005, 0.03))
            for process in ranks:
                os.kill(process, signal.SIGKILL)
                time.sleep(0.002)
        codes = [os.waitpid(process, 0)[1] for process in ranks]
        assert world < 4 or codes == [0] * 4
        assert not is_building(tmp_path / "set")
    expect_whole(tmp_path / "set")


def test_two_launches_at_once_never_both_write(tmp_path):
    def work(world: int, rank: int) -> None:
        try:
            made = writer(tmp_path / "set", images=IMAGES, rank=rank, world=world, commit_bytes=1)
        except CacheError as error:
            if "another process is building" not in str(error):
                raise
            return
        with made:
            fill(made)
            made.finish()

    for _ in range(4):
        for process in [forked(lambda w=w, r=r: work(w, r)) for w, r in ((1, 0), (2, 1), (2, 0), (3, 2))]:
            assert os.waitpid(process, 0)[1] == 0
    with writer(tmp_path / "set", images=IMAGES) as made:
        fill(made)
        assert made.finish().whole
    expect_whole(tmp_path / "set")


def test_a_loading_process_that_outlives_its_builder_holds_nothing(tmp_path):
    ready, go = os.pipe(), os.pipe()

    def work() -> None:
        os.close(go[1])  # so that it ends with the test, also one that fails
        writer(tmp_path / "set")
        if os.fork() == 0:
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            os._exit(0)
        os.read(go[0], 1)

    process = forked(work)
    os.read(ready[0], 1)
    assert is_building(tmp_path / "set")
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert not is_building(tmp_path / "set")
    writer(tmp_path / "set").close()
    os.write(go[1], b"1")
