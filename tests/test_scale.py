"""Two processes on the CPU train what one does with the same images a step; they share batches, queues and shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from densekd import files
from densekd.models.digest import weights_digest
from densekd.runs import distill, execution, train
from scalekit import distillation, launch, make_place, recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking"),
]

STEPS = 20
SPARE = {"options": {"dead": True}}
"""Of a student: a layer that takes no part, which DDP would wait for."""
CASES = {
    # Every step is one batch of four images, two in each process; the label of some images is mostly void.
    "distilled": (2, distillation, {"student": SPARE, "train": {"batch_size": 2}}),
    # Eight images in two micro-batches of two in each process; the whole step is one batch to the loss.
    "accumulated": (2, recipe, {"student": {**SPARE, "norm": "frozen"}, "train": {"global_batch_size": 8}}),
    "sharded": (2, distillation, {"train": {"batch_size": 2, "clip_norm": 0.5}, "runtime": {"fsdp": True}}),
}


def asked(place: Path, name: str, world: int) -> dict:
    """The recipe of a case for so many processes: the same images a step."""
    _, make, changes = CASES[name]
    changes = {key: dict(value) for key, value in changes.items()}
    options = changes.pop("student", {})
    model = f"{place}/nets.py:{options.pop('norm', 'grouped')}"
    training = changes["train"]
    training["batch_size"] = 2 if world == 2 else 4
    if world == 1:
        changes.pop("runtime", None)
    return make(place, student={"model": model, **options}, **changes)


def weights(run: Path, name: str = "student") -> dict[str, torch.Tensor]:
    return files.read_tensors(run / "checkpoints" / f"step-{STEPS:08d}" / f"{name}.safetensors")


def log(run: Path) -> list[dict[str, float]]:
    lines = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    return [dict(zip(lines[0], map(float, line), strict=True)) for line in lines[1:]]


def do(place: Path, out: Path, world: int) -> None:
    for name, (_, make, _) in CASES.items():
        (train if make is recipe else distill)(asked(place, name, world), out=out / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one(place, tmp_path_factory):
    """The runs of `CASES` by one process."""
    out = tmp_path_factory.mktemp("one")
    do(place, out, 1)
    return out


@pytest.fixture(scope="module")
def two(place, tmp_path_factory):
    """The same by two, all in one launch; of the sharded one the kinds of its parameters are kept."""
    out = tmp_path_factory.mktemp("two")

    def work(rank: int) -> None:
        shard = execution.shard

        def watched(objective, world, device):
            shard(objective, world, device)
            kinds = {
                "student": [isinstance(p.data, DTensor) for p in objective.parameters()],
                "teacher": [isinstance(p.data, DTensor) for p in objective.distiller.teacher.parameters()],
                "rows": [p.to_local().shape[0] for p in objective.student.parameters()],
            }
            (out / f"kinds-{rank}.json").write_text(json.dumps(kinds))

        execution.shard = watched
        do(place, out, 2)

    return out, launch(work, out / "io")


class TestEqualToOneProcess:
    @pytest.mark.parametrize("name", CASES)
    def test_every_parameter(self, one, two, name):
        expected, found = weights(one / name), weights(two[0] / name)
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")

    @pytest.mark.parametrize("name", ["distilled", "sharded"])
    def test_adapters(self, one, two, name):
        expected, found = weights(one / name, "adapters"), weights(two[0] / name, "adapters")
        assert len(expected) == 2
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", CASES)
    def test_losses_rates_and_gradients(self, one, two, name):
        expected, found = log(one / name), log(two[0] / name)
        assert len(found) == STEPS
        for row, other in zip(expected, found, strict=True):
            for key in set(row) - {"seconds", "data_wait"}:
                assert other[key] == pytest.approx(row[key], rel=1e-4, abs=1e-6), key

    @pytest.mark.parametrize("name", CASES)
    def test_scores_count_every_image_once(self, one, two, name):
        records = [json.loads((run / name / "record.json").read_text()) for run in (one, two[0])]
        assert records[1]["final"]["images"] == 5  # three of one process, two of the other
        assert records[0]["final"] == records[1]["final"]
        assert [record["processes"] for record in records] == [1, 2]
        assert records[1]["epochs"] == records[0]["epochs"]

    def test_terms_act_in_the_log(self, two):
        rows = log(two[0] / "distilled")
        for term in ("channelwise:output", "channelwise:act"):
            assert all(row[term] > 0 for row in rows[:15])
        assert all(row["channelwise:act"] == 0 for row in rows[15:])


class TestOneSpeaks:
    def test_and_writes(self, two):
        out, launched = two
        assert launched.err() == ""
        assert {path.name for path in (out / "distilled").iterdir()} == {
            *("checkpoints", "log.csv", "recipe.yaml", "record.json", "student.safetensors"),
            *("confusion.json", "evaluations.csv", "looks", "origin.json"),
        }

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("distilled", "4 images a step: 2 processes x 2 images x 1 micro-batch"),
            ("accumulated", "8 images a step: 2 processes x 2 images x 2 micro-batches"),
            ("accumulated", "student: the loss does not reach 2 parameter tensors; they are frozen"),
        ],
    )
    def test_what_is_said(self, two, name, line):
        warnings = json.loads((two[0] / name / "record.json").read_text())["warnings"]
        assert sum(warning.startswith(line) for warning in warnings) == 1


class TestSharded:
    def test_parameters_are_shards_and_the_teacher_is_whole(self, two):
        kinds = [json.loads((two[0] / f"kinds-{rank}.json").read_text()) for rank in range(2)]
        for found in kinds:
            assert found["student"]
            assert all(found["student"])
            assert found["teacher"]
            assert not any(found["teacher"])
        whole = [value.shape[0] for value in weights(two[0] / "sharded").values()]
        rows = [sum(pair) for pair in zip(*(found["rows"] for found in kinds), strict=True)]
        assert sorted(rows) == sorted(whole)
        assert kinds[0]["rows"] != sorted(whole)

    def test_the_student_is_written_whole(self, one, two):
        shipped = [files.read_tensors(run / "sharded" / "student.safetensors") for run in (one, two[0])]
        for name, value in shipped[0].items():
            torch.testing.assert_close(shipped[1][name], value, rtol=0, atol=1e-5)


def remembering(place: Path, world: int) -> dict:
    """A run with a memory and with an adversary; 8 steps."""
    terms = [
        {
            "method": "crossimage",
            "student": "output",
            "teacher": "output",
            "options": {"memory": True, "pixel_queue": 40, "region_queue": 8, "pixels_per_class": 4},
        },
        {"method": "holistic", "student": "output", "teacher": "output", "weight": 0.1, "options": {"width": 4}},
    ]
    shape = {"batch_size": 4 // world, "steps": 8, "evaluate_every": None}
    return distillation(place, terms=terms, train=shape)


@pytest.mark.long
def test_queues_and_adversaries_are_the_same_everywhere(place, tmp_path):
    def work(rank: int) -> None:
        kept = []
        prepare = execution.wrapped

        def watched(accelerator, objective, *, sharded):
            kept.append(objective)
            return prepare(accelerator, objective, sharded=sharded)

        execution.wrapped = watched
        distill(remembering(place, 2), out=tmp_path / "run")
        objective = kept[0]
        found = {
            "student": weights_digest(objective.student),
            "networks": [weights_digest(one.network) for one in objective.adversaries().values()],
            "queues": {
                name: weights_digest(module)
                for name, module in objective.named_modules()
                if type(module).__name__ == "ClassQueue"
            },
            "filled": [int(b.sum()) for name, b in objective.named_buffers() if name.endswith("filled")],
        }
        (tmp_path / f"{rank}.json").write_text(json.dumps(found))

    launch(work, tmp_path / "io")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first["networks"]) == 1
    assert len(first["queues"]) == 2
    assert all(first["filled"])


@pytest.mark.long
def test_an_adversary_learns_as_with_one_process(place, tmp_path):
    def asked(world: int) -> dict:
        plan = remembering(place, world)
        plan["terms"] = plan["terms"][1:]
        return plan

    launch(lambda _: distill(asked(2), out=tmp_path / "two"), tmp_path / "io")
    distill(asked(1), out=tmp_path / "one")
    path = "checkpoints/step-00000008/student.safetensors"
    expected, found = (files.read_tensors(tmp_path / run / path) for run in ("one", "two"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    # Its own weights differ by more where Adam makes steps of gradients that are zero but for rounding.
    for row, other in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert other["holistic:output/adversary"] == pytest.approx(row["holistic:output/adversary"], rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no synchronised batch norm on a CPU")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_synchronised_batch_norm_is_that_of_one_process(place, tmp_path):
    def asked(world: int) -> dict:
        runtime = {"device": "cuda"}
        student = {"model": f"{place}/nets.py:batched"}
        return recipe(place, student=student, train={"batch_size": 4 // world}, runtime=runtime)

    launch(lambda _: train(asked(2), out=tmp_path / "two"), tmp_path / "io")
    launch(lambda _: train(asked(1), out=tmp_path / "one"), tmp_path / "io", world=1)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
