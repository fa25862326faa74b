"""Numbers that no machine or data set can serve are told before a batch is loaded or a process started."""

from __future__ import annotations

from typing import Any

import pytest

from densekd.config import load_recipe
from densekd.errors import ConfigError, ResourceError
from densekd.runs import excessive
from densekd.runs.assemble import assemble
from densekd.runs.excessive import usable_workers
from densekd.training.batcher import Batcher
from runkit import make_place, recipe


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path / "place", train=4, val=1)


@pytest.fixture(autouse=True)
def no_batch(monkeypatch):
    def loads(*_: Any) -> None:
        raise AssertionError("a batch was loaded")

    monkeypatch.setattr(Batcher, "batches", loads)
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def asked(place, **keys):
    return load_recipe(recipe(place), {key.replace("__", "."): value for key, value in keys.items()})


def test_workers_beyond_eight_for_each_cpu_are_refused(place):
    with pytest.raises(ConfigError, match=r"runtime\.workers: 17 loading processes.*each of the 2.*give 16 or fewer"):
        assemble(asked(place, runtime__workers=17))
    assert usable_workers(asked(place, runtime__workers=16), fresh=True) == []


def test_a_run_from_a_larger_machine_is_gone_on_with_and_scored(place):
    many = asked(place, runtime__workers=17, train__steps=20)
    for options in ({"resumed": True}, {"training": False}):
        (line,) = (line for line in assemble(many, **options).notices if line.startswith("runtime.workers"))
        assert "17 loading processes are more than 8 for each of the 2 logical CPUs" in line


def test_workers_that_no_micro_batch_is_left_for_are_told(place):
    said: list[str] = []
    parts = assemble(asked(place, runtime__workers=8), said=said.append)
    line = "runtime.workers: 8 loading processes, and the whole run takes 6 micro-batches: 2 of them will load nothing"
    assert [one for one in said if one.startswith(line)]
    assert [one for one in parts.notices if one.startswith(line)]
    assert not [one for one in parts.unseen if one.startswith(line)]
    assert "load nothing" not in str(assemble(asked(place, runtime__workers=6)).notices)


def test_a_batch_larger_than_the_memory_is_refused(place, monkeypatch):
    # 16x24 pixels: image 4608 bytes, label 3072, valid 384 or none; all of it twice.
    monkeypatch.setattr(excessive, "available_bytes", lambda: 1_000_000)
    with pytest.raises(
        ResourceError, match=r"train\.batch_size: 100 images of 16x24.* 1 MB of memory.*at most \d\d "
    ) as e:
        assemble(asked(place, train__batch_size=100))
    fitting = int(str(e.value).split("at most ")[1].split()[0])
    assert 1_000_000 // (2 * (4608 + 3072 + 384)) - 1 <= fitting <= 1_000_000 // (2 * (4608 + 3072))
    assemble(asked(place, train__batch_size=fitting))
    with pytest.raises(ResourceError, match=f"at most {fitting} "):
        assemble(asked(place, train__batch_size=fitting + 1))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"train__batch_size": 4001},
            r"train\.batch_size: a step takes 4,001 images, and there are 4 .* at most 4,000",
        ),
        ({"train__accumulate": 10**8}, r"train\.batch_size x train\.accumulate: a step takes 300,000,000 images"),
        ({"train__global_batch_size": 3 * 10**9}, r"train\.global_batch_size: .*shown 750,000,000 times"),
    ],
)
def test_a_step_of_a_thousand_epochs_is_refused(place, keys, told):
    with pytest.raises(ConfigError, match=told):
        assemble(asked(place, **keys))


def test_a_step_of_more_images_than_there_are_is_told(place):
    line = (
        "train.batch_size: a step takes 5 images, and there are 4 to train on: some are shown several times in a step"
    )
    assert line in assemble(asked(place, train__batch_size=5)).notices
    assert "a step takes" not in str(assemble(asked(place, train__batch_size=4)).notices)
