"""Which process this is, how a step is shared out, and what one process makes of it all."""

from __future__ import annotations

import os
import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

from densekd.config import load_recipe
from densekd.errors import ConfigError, RunError
from densekd.launch import Launch, is_first, launched, require_one_process, several
from densekd.losses.catalog import METHODS
from densekd.runs import ranks as ranks_module
from densekd.runs import train
from densekd.runs.engine import engine
from densekd.runs.ranks import ElsewhereError, Ranks, joined
from densekd.runs.share import images_of_step, share_out
from densekd.runs.synchronised import not_shared, require_acting, terms_not_shared
from densekd.training.peers import Peers
from densekd.training.specs import RuntimeSpec, TermSpec, TrainSpec

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def place(monkeypatch):
    """Sets the launcher's variables: those given, and none else."""

    def set_to(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_to


class TestLaunched:
    @pytest.mark.parametrize("world", [None, "", "1"])
    def test_alone(self, place, world):
        place(**({} if world is None else {"WORLD_SIZE": world, "RANK": 0}))
        assert not several()
        assert is_first()
        assert launched() == Launch()
        require_one_process()

    def test_one_of_several(self, place):
        place(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
        assert launched() == Launch(5, 8, 1, 4)
        assert (several(), is_first(), launched().first) == (True, False, False)
        with pytest.raises(RunError, match=r"launched as 8 processes .* only `densekd train` and `densekd distill`"):
            require_one_process()

    @pytest.mark.parametrize(
        "values",
        [{"WORLD_SIZE": 2}, {"WORLD_SIZE": 2, "RANK": 0}, {"WORLD_SIZE": "two", "RANK": 0, "LOCAL_RANK": 0}],
    )
    def test_which_one_is_not_said(self, place, values):
        place(**values)
        with pytest.raises(
            RunError, match=r"which one is this\? .*: expected three whole numbers\. Start with `torchrun"
        ):
            launched()

    def test_beyond_the_last(self, place):
        place(RANK=2, WORLD_SIZE=2, LOCAL_RANK=0)
        with pytest.raises(RunError, match="RANK=2 and LOCAL_RANK=0 must be below WORLD_SIZE=2"):
            launched()


class Before:
    """As much of a record as `share_out` reads."""

    def __init__(self, processes: int) -> None:
        self.processes = processes


class TestShare:
    def share(self, world=1, before=None, **train):
        return share_out(TrainSpec(steps=1, **train), Launch(0, world, 0, world), before)

    def test_one_process_is_as_the_recipe_says(self):
        share = self.share(batch_size=3, accumulate=2)
        assert (share.accumulate, share.images, share.unit) == (2, 6, 1)

    def test_a_global_batch_is_kept_by_micro_batches(self):
        shares = [self.share(world, batch_size=2, global_batch_size=8) for world in (1, 2, 4)]
        assert [share.accumulate for share in shares] == [4, 2, 1]
        assert [share.images for share in shares] == [8, 8, 8]
        assert [share.unit for share in shares] == [4, 4, 4]  # micro-batches of the whole step
        assert str(shares[1]) == "8 images a step: 2 processes x 2 images x 2 micro-batches"
        assert str(shares[2]) == "8 images a step: 4 processes x 2 images x 1 micro-batch"

    def test_without_one_the_batch_grows_with_the_processes(self):
        share = self.share(2, batch_size=2, accumulate=3)
        assert (share.accumulate, share.images, share.unit) == (3, 12, 2)
        assert images_of_step(TrainSpec(steps=1, batch_size=2, accumulate=3), 2) == 12

    @pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 2), (4, 1)])
    def test_a_resume_keeps_the_images_and_the_units_of_a_step(self, world, accumulate):
        share = self.share(world, Before(2), batch_size=2, accumulate=2)
        assert (share.accumulate, share.images, share.unit) == (accumulate, 8, 2)

    def test_what_cannot_be_shared_out_is_told_with_what_can(self):
        with pytest.raises(ConfigError) as told:
            self.share(3, batch_size=2, global_batch_size=8)
        assert str(told.value) == (
            "train.global_batch_size: 8 images cannot be made of 3 processes x 2 images (train.batch_size): 1 or 2 or "
            "4 processes fit; with 3 processes 6 or 12"
        )
        with pytest.raises(ConfigError, match=r"of 1 process x 5 images .*: nor of any other number .* 5 or 10$"):
            self.share(batch_size=5, global_batch_size=8)
        with pytest.raises(ConfigError, match=r"began with 2 processes and 4 images a step, .* 3 processes x 2 images"):
            self.share(3, Before(2), batch_size=2)

    def test_accumulate_beside_it_is_refused(self):
        with pytest.raises(ValueError, match="accumulate is found from `global_batch_size`"):
            TrainSpec(steps=1, accumulate=2, global_batch_size=8)


class TestKeys:
    def recipe(self, train=None, **runtime):
        raw = {"data": {"name": "scenes"}, "student": {"model": "smp:PSPNet"}, "train": {"steps": 1, **(train or {})}}
        return load_recipe({**raw, "task": {"dice": 1.0}, "runtime": runtime})

    def test_where_they_would_not_act_they_are_errors(self):
        two, cpu, cuda = Launch(0, 2, 0, 2), torch.device("cpu"), torch.device("cuda")
        require_acting(self.recipe(fsdp=True), cpu, two)
        require_acting(self.recipe(sync_batchnorm=True), cuda, two)
        with pytest.raises(
            ConfigError, match=r"runtime\.sync_batchnorm: torch has no synchronised batch norm on a CPU"
        ):
            require_acting(self.recipe(sync_batchnorm=True), cpu, two)
        with pytest.raises(ConfigError, match=r"runtime\.fsdp: .* nothing would be sharded"):
            require_acting(self.recipe(fsdp=True), cpu, Launch())
        with pytest.raises(ConfigError, match=r"train\.ema_decay: not together with runtime\.fsdp"):
            require_acting(self.recipe({"ema_decay": 0.9}, fsdp=True), cpu, two)
        with pytest.raises(ConfigError, match=r"runtime\.precision: not float16 together with runtime\.fsdp"):
            require_acting(self.recipe(fsdp=True, precision="float16"), cuda, two)

    def test_what_each_process_computes_alone_is_said(self):
        two, cpu, cuda = Launch(0, 2, 0, 2), torch.device("cpu"), torch.device("cuda")
        norm, plain = torch.nn.Sequential(torch.nn.BatchNorm2d(2)), torch.nn.GroupNorm(1, 2)
        dice = "task: dice are of the 8 images of each process, not of all images of a step"
        statistics = "batch norm takes its statistics from the 8 images of each process"
        assert not_shared(self.recipe(), norm, cpu, Launch()) == []
        assert not_shared(self.recipe(), plain, cpu, two) == [dice]
        assert not_shared(self.recipe(), norm, cuda, two) == [dice]
        assert not_shared(self.recipe(), norm, cpu, two) == [
            f"{statistics} (torch synchronises it on CUDA only)",
            dice,
        ]
        distilled = self.recipe().model_copy(update={"terms": (TermSpec(), TermSpec(method="dist"))})
        assert terms_not_shared(distilled, Launch()) == terms_not_shared(self.recipe(), two) == []
        assert terms_not_shared(distilled, two) == [
            "terms: dist compare within the 8 images of each process, not within all images of a step"
        ]
        assert not_shared(self.recipe(sync_batchnorm=False), norm, cuda, two)[0] == (
            f"{statistics} (runtime.sync_batchnorm is false)"
        )


class TestOneProcess:
    def test_agrees_with_itself(self, place):
        place()
        with joined() as ranks:
            assert ranks.world == 1
            assert ranks.agreed("nothing", lambda: 3) == 3
            assert ranks.from_first("nothing", lambda: "text") == "text"
            ranks.same("nothing", "digest")
            error = ValueError("as it was")
            assert ranks.told(error) is error

    def test_peers_change_nothing(self):
        peers, values = Peers(), {"a": torch.tensor(2.0)}
        counts = torch.tensor([1, 2])
        assert peers.most(7) == 7
        assert peers.total(counts) is counts
        assert peers.means(values) == values
        assert peers.gathered(counts).tolist() == [[1, 2]]

    def test_one_process_of_a_launcher_needs_no_group(self, place):
        place(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0)  # and no MASTER_ADDR
        with engine(RuntimeSpec(), torch.device("cpu")) as accelerator:
            assert accelerator.num_processes == 1
            assert not torch.distributed.is_initialized()
        assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ACCELERATE_USE_FSDP", "true", r"asks for FSDP, .*: set runtime\.fsdp=true in the recipe"),
        ("ACCELERATE_USE_DEEPSPEED", "True", "asks for DEEPSPEED, which a run does not use"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"asks for dynamo \(INDUCTOR\), which no run uses: no there"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", r"asks for 2 gradient .*train\.accumulate or"),
    ],
)
def test_what_accelerate_was_configured_for_is_refused_before_anything_is_written(
    monkeypatch, tmp_path, name, value, told
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told):
        train("demo", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Store(dict):
    """A store of one process, with the calls of torch's."""

    def compare_set(self, key, expected, value):
        return self.setdefault(key, value.encode())


def test_the_first_failure_is_the_one_that_is_told():
    ranks = Ranks(Launch(1, 2, 1, 2), Store())
    first, second = RunError("disk full"), ValueError("what came of it")
    assert ranks.told(first) is first
    told = ranks.told(second)
    assert isinstance(told, ElsewhereError)
    assert (str(told), told.exit_code, told.told_elsewhere) == ("process 1: RunError: disk full", 2, True)
    denied = Ranks(Launch(1, 2, 1, 2), Store())
    denied.told(PermissionError(13, "Permission denied", "1.png"))
    assert denied.told(second).exit_code == 2  # as of the process that could not read it
    lost = Ranks(Launch(1, 2, 1, 2), Store()).told(RuntimeError("[gloo/transport/tcp] Connection closed by peer"))
    assert str(lost) == "another process of this run ended without a word; go on with --resume"


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("holistic", "masked")])
def test_what_compares_within_a_batch_is_known(name):
    """The value of a batch is the mean of its halves', or the loss says that it is not."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, 8, 8, generator=generator)
    labels = torch.randint(3, (4, 8, 8), generator=generator)
    labels[0, :6] = 255
    loss = METHODS[name]()
    loss.bind(student.shape, teacher.shape, 3)
    whole = loss(student, teacher, labels=labels)
    halves = [loss(student[part], teacher[part], labels=labels[part]) for part in (slice(2), slice(2, 4))]
    equal = torch.allclose(whole, torch.stack(halves).mean(), rtol=1e-5)
    assert equal != loss.batch_wide


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("fails", [False, True])
def test_a_group_outlives_what_was_trained(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP's reducer, freed as the last that holds a group, waited forever for the group's threads."""
    monkeypatch.setattr(ranks_module, "_KEPT", kept := [])
    ranks = Ranks(Launch(0, 1, 0, 1), dist.HashStore())
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), ranks.group(torch.device("cpu")):
        group = weakref.ref(dist.group.WORLD)
        if fails:
            raise ZeroDivisionError
    assert not dist.is_initialized()
    assert group() is not None
    ranks.leave()
    assert (group() is not None) is fails
    assert bool(kept) is fails
