"""The auxiliary head: trained beside the student with its own loss, and no part of it."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from densekd.config import load_recipe
from densekd.distiller import Distiller, Term
from densekd.errors import ConfigError, ModelError, TapError
from densekd.launch import Launch
from densekd.losses import ChannelWise
from densekd.models.auxiliary import AuxiliaryHead, AuxiliarySpec, attach_auxiliary, auxiliary_of
from densekd.runs import Run, distill, train
from densekd.runs.assemble import assemble
from densekd.runs.rehearsal import rehearse
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec
from densekd.training.objective import Alone, Distilled
from densekd.training.signals import Interrupted
from runkit import Heard, distillation, log_without_times, make_place, recipe

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))


def attached(tap: str = "0", **options: Any) -> tuple[nn.Sequential, AuxiliaryHead]:
    student = network()
    return student, attach_auxiliary(student, AuxiliarySpec(tap=tap, dropout=0.0, **options), 4, IMAGES[:1])


def task(weight: float = 0.4) -> SegmentationTask:
    return SegmentationTask(SegmentationSpec(auxiliary=weight), 4, 255, ("a", "b", "c", "d"))


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(F.interpolate(logits, (8, 8), mode="bilinear", align_corners=False), LABELS)


class TestAttached:
    def test_training_gives_both_maps_and_evaluation_the_network_alone(self) -> None:
        student, head = attached()
        plain = network()
        output = student(IMAGES)
        assert torch.equal(output["out"], plain(IMAGES))
        # What the convolution gave, though the ReLU after it works in place.
        assert torch.equal(output["aux"], head(plain[0](IMAGES)))
        assert head[0].out_channels == 2  # a quarter of eight
        student.eval()
        assert torch.equal(student(IMAGES), plain(IMAGES))

    def test_the_network_keeps_its_names_and_parameters(self) -> None:
        student, head = attached(channels=5)
        assert head[0].out_channels == 5
        assert student.state_dict().keys() == network().state_dict().keys()
        assert not set(map(id, head.parameters())) & set(map(id, student.parameters()))
        assert auxiliary_of(student) is head
        assert auxiliary_of(network()) is None

    def test_attaching_leaves_no_trace(self) -> None:
        student = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)).eval()
        before = copy.deepcopy(student.state_dict())
        attach_auxiliary(student, AuxiliarySpec(tap="1"), 4, IMAGES[:1])
        assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
        assert not any(module.training for module in student.modules())
        assert all(parameter.grad is None for parameter in student.parameters())

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
    def test_a_copy_has_a_head_of_its_own(self, how: Any) -> None:
        student, head = attached()
        twin = how(student)
        own = auxiliary_of(twin)
        assert own is not None
        assert own is not head
        with torch.no_grad():
            own[-1].bias.fill_(100.0)
        assert twin(IMAGES)["aux"].min() > 50
        assert student(IMAGES)["aux"].max() < 50

    def test_an_output_with_names_keeps_them(self) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = network()

            def forward(self, images: Tensor) -> dict[str, Tensor]:
                return {"logits": self.body(images), "other": images}

        student = Named()
        attach_auxiliary(student, AuxiliarySpec(tap="body.0"), 4, IMAGES[:1])
        assert list(student(IMAGES)) == ["logits", "other", "aux"]

    def test_a_pass_that_fails_leaves_nothing_for_the_next(self) -> None:
        student, _ = attached()
        with pytest.raises(RuntimeError):
            student(torch.randn(2, 5, 8, 8))
        handle = student[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            student(IMAGES)
        handle.remove()
        assert student(IMAGES)["aux"].shape == (2, 4, 4, 4)


class TestRefused:
    @pytest.mark.parametrize(
        ("tap", "error", "words"),
        [
            ("00", TapError, "no module '00'"),
            ("output", ModelError, "'output' is the class map itself"),
            ("logits", ModelError, "is the class map itself"),
        ],
    )
    def test_taps(self, tap: str, error: type[Exception], words: str) -> None:
        student = network()
        with pytest.raises(error, match=words):
            attach_auxiliary(student, AuxiliarySpec(tap=tap), 4, IMAGES[:1])
        assert torch.equal(student(IMAGES), network()(IMAGES))

    def test_a_second_head(self) -> None:
        student, _ = attached()
        with pytest.raises(ModelError, match="one is enough"):
            attach_auxiliary(student, AuxiliarySpec(tap="0"), 4, IMAGES[:1])

    def test_a_network_with_an_auxiliary_output_of_its_own(self) -> None:
        class Own(nn.Sequential):
            def forward(self, images: Tensor) -> dict[str, Tensor]:
                out = super().forward(images)
                return {"out": out, "aux": out}

        with pytest.raises(ModelError, match=r"auxiliary output of its own.*aux_loss=False"):
            attach_auxiliary(Own(*network()), AuxiliarySpec(tap="0"), 4, IMAGES[:1])

    def test_a_tap_behind_which_nothing_learns(self) -> None:
        student = network()
        student[0].requires_grad_(False)
        with pytest.raises(ModelError, match="no gradient passes '0'"):
            attach_auxiliary(student, AuxiliarySpec(tap="0"), 4, IMAGES[:1])

    def test_a_network_that_fails(self) -> None:
        with pytest.raises(ModelError, match=r"fails in training mode on images \(1, 5, 8, 8\)"):
            attach_auxiliary(network(), AuxiliarySpec(tap="0"), 4, torch.randn(1, 5, 8, 8))


class TestObjective:
    def test_the_loss_is_the_tasks_and_the_weighted_one_of_the_head(self) -> None:
        student, head = attached()
        objective = Alone(student, task())
        total, parts = objective(IMAGES, LABELS, None)
        plain = network()
        main, aux = cross_entropy(plain(IMAGES)), cross_entropy(head(plain[0](IMAGES)))
        torch.testing.assert_close(total, main + 0.4 * aux)
        torch.testing.assert_close(parts["auxiliary"], 0.4 * aux.detach())
        total.backward()
        (main + 0.4 * aux).backward()
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(student.get_parameter(name).grad, parameter.grad)
        assert objective.extra_state() is head
        assert {f"auxiliary.{name}" for name, _ in head.named_parameters()} < dict(objective.named_parameters()).keys()

    def test_under_a_teacher_the_terms_are_those_without_a_head(self) -> None:
        def parts(student: nn.Module, weight: float) -> tuple[Distilled, dict[str, Tensor]]:
            teacher = nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), nn.Conv2d(16, 4, 1))
            for place, parameter in enumerate(teacher.parameters()):
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(place))
            terms = [
                Term(ChannelWise(), student="output", teacher="output"),
                Term(ChannelWise(), student="0", teacher="0"),
            ]
            distiller = Distiller(student, teacher, terms, IMAGES)
            objective = Distilled(distiller, task(weight))
            return objective, objective(IMAGES, LABELS, None)[1]

        objective, found = parts(attached()[0], 0.4)
        plain, expected = parts(network(), 0.0)
        assert float(found.pop("auxiliary")) > 0
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
        names = objective.extra_state().state_dict().keys()  # type: ignore[union-attr]
        assert {name.partition(".")[0] for name in names} == {"adapters", "auxiliary"}
        assert plain.extra_state() is plain.distiller.adapters
        assert not [name for name in objective.distiller.state_dict() if "auxiliary" in name]

    @pytest.mark.slow
    def test_every_parameter_takes_part_under_ddp(self, tmp_path: Path) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            student, head = attached()
            wrapped = DistributedDataParallel(Alone(student, task()))
            for _ in range(2):  # the second pass fails where a parameter got no gradient in the first
                wrapped(IMAGES, LABELS, None)[0].backward()
            assert all(parameter.grad is not None for parameter in head.parameters())
        finally:
            torch.distributed.destroy_process_group()


class TestRecipe:
    def test_a_short_name_knows_its_tap(self) -> None:
        changes = {"student.options": {}, "student.auxiliary": {}, "task.auxiliary": 0.4}
        for model, tap in (
            ("pspnet-resnet18", "encoder.layer3"),
            ("deeplabv3-resnet18-half", "encoder.model.layer3"),
            ("pspnet-mobilenet_v2", "encoder.model.blocks.4"),
        ):
            student = load_recipe("demo", {"student.model": model, **changes}).student
            assert student.auxiliary == AuxiliarySpec(tap=tap, channels=None, dropout=0.1)
            assert type(student).model_validate(student.model_dump(mode="json")) == student

    def test_another_tap_is_kept_and_a_network_without_one_asks_for_it(self) -> None:
        given = {"student.options": {}, "task.auxiliary": 0.4}
        kept = load_recipe(
            "demo", {**given, "student.model": "pspnet-resnet18", "student.auxiliary": {"tap": "encoder.layer2"}}
        )
        assert kept.student.auxiliary is not None
        assert kept.student.auxiliary.tap == "encoder.layer2"
        with pytest.raises(ConfigError, match=r"student\.auxiliary\.tap.*missing"):
            load_recipe("demo", {**given, "student.model": "segformer-b0", "student.auxiliary": {}})

    def test_a_head_without_a_loss_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^recipe: student\.auxiliary asks .* its loss, is 0.*usually to 0\.4"):
            load_recipe("demo", {"student.auxiliary": {"tap": "encoder.layer3"}})


class StopAt(Heard):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, taken: int, steps: int, result: Any) -> None:
        if taken == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("data"))


def with_head(asked: dict[str, Any]) -> dict[str, Any]:
    asked["student"]["auxiliary"] = {"tap": "2", "channels": 4}
    return {**asked, "task": {"auxiliary": 0.4}}


@pytest.mark.slow
class TestRun:
    def test_a_rehearsal_leaves_no_gradient_in_the_head(self, place: Path) -> None:
        parts = assemble(load_recipe(with_head(recipe(place))))
        rehearse(parts)
        head = auxiliary_of(parts.student)
        assert head is not None
        assert all(parameter.grad is None for parameter in head.parameters())
        assert int(head[1].num_batches_tracked) == 0
        assert any("auxiliary head on '2' (6 -> 4 channels" in notice for notice in parts.notices)

    def test_its_batch_norm_is_told_of_under_several_processes(self, place: Path) -> None:
        (place / "plain.py").write_text(
            "from torch import nn\n\n\ndef net(num_classes):\n"
            "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, num_classes, 1))"
        )
        asked = load_recipe(with_head(recipe(place, student={"model": f"{place}/plain.py:net"})))
        told = [assemble(asked, launch=launch).notices for launch in (Launch(), Launch(0, 2, 0, 2))]
        assert [any("batch norm takes its statistics" in line for line in lines) for lines in told] == [False, True]

    @pytest.mark.parametrize("kind", ["train", "distill"])
    def test_a_resumed_run_is_the_whole_one_and_ships_the_student_alone(
        self, place: Path, tmp_path: Path, kind: str
    ) -> None:
        if kind == "distill" and not (place / "teacher").exists():
            train(recipe(place, student={"model": f"{place}/nets.py:teacher"}), out=place / "teacher")
        run_it = {"train": train, "distill": distill}[kind]
        asked = with_head(recipe(place) if kind == "train" else distillation(place, place / "teacher"))
        whole = run_it(asked, out=tmp_path / "whole")
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            run_it(asked, out=tmp_path / "run", progress=StopAt(3))
        resumed = run_it(asked, out=tmp_path / "run", resume=True)
        assert log_without_times(resumed.path) == log_without_times(whole.path)
        assert "auxiliary" in (whole.path / "log.csv").read_text().splitlines()[0]
        last = [run.path / "checkpoints" / "step-00000006" / "adapters.safetensors" for run in (whole, resumed)]
        assert last[0].read_bytes() == last[1].read_bytes()
        trained = load_file(last[0])
        assert any(value.shape == (4, 6, 3, 3) for value in trained.values())

        plain = train(recipe(place), out=tmp_path / "plain")
        shipped = load_file(whole.weights)
        assert shipped.keys() == load_file(plain.weights).keys()
        assert whole.record.student == plain.record.student  # parameters and FLOPs without the head
        extra = json.loads((whole.path / "record.json").read_text())["cost"]["extra_parameters"]
        assert extra >= sum(p.numel() for p in AuxiliaryHead(6, 4, 3, 0.1).parameters())
        student = Run.load(whole.path).student()
        assert auxiliary_of(student) is None
        assert isinstance(student(torch.zeros(1, 3, 8, 8)), Tensor)
