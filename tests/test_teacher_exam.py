from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from densekd.errors import DataError, ShapeError
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec
from densekd.teacher_exam import Convention, best_assignment, examine_teacher, read
from densekd.teacher_exam.conventions import conventions

NAMES = ("sky", "road", "tree", "car", "sign", "wall")
COLORS = torch.tensor(
    [
        [0.35, 0.55, 0.85],
        [0.40, 0.38, 0.40],
        [0.15, 0.45, 0.15],
        [0.75, 0.15, 0.20],
        [0.90, 0.80, 0.20],
        [0.6, 0.5, 0.45],
    ]
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = 255
CPU = torch.device("cpu")


def drawn(count: int, seed: int, size: int = 24) -> list[dict[str, object]]:
    """Pictures of coloured blocks with noise; the colour decides the class; some pixels are void."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        blocks = torch.randint(0, len(NAMES), (4, 4), generator=generator)
        label = blocks.repeat_interleave(size // 4, 0).repeat_interleave(size // 4, 1)
        image = COLORS[label].permute(2, 0, 1) + 0.08 * torch.randn(3, size, size, generator=generator)
        label = label.clone()
        label[torch.rand(size, size, generator=generator) < 0.05] = VOID
        items.append({"image": normalised(image.clamp(0, 1)), "label": label, "index": index})
    return items


def normalised(image: torch.Tensor) -> torch.Tensor:
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def network(outputs: int = len(NAMES)) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, outputs, 1))


def trained(net: nn.Module, task: SegmentationTask, steps: int, items: list[dict[str, object]]) -> nn.Module:
    images = torch.stack([item["image"] for item in items])
    labels = torch.stack([item["label"] for item in items])
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(net(images), labels)[0].backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def task() -> SegmentationTask:
    return SegmentationTask(SegmentationSpec(), len(NAMES), VOID, NAMES)


@pytest.fixture(scope="module")
def view() -> list[dict[str, object]]:
    return drawn(16, seed=1)


@pytest.fixture(scope="module")
def good(task: SegmentationTask) -> nn.Module:
    torch.manual_seed(0)
    return trained(network(), task, 60, drawn(16, seed=0))


@pytest.fixture
def examine(task, view):
    def run(teacher, **options):
        settings = {"device": CPU, "mean": MEAN, "std": STD, **options}
        return examine_teacher(teacher, view, task, NAMES, **settings)

    return run


class Wants(nn.Module):
    """The network as one that wants its images in another convention."""

    def __init__(self, inner: nn.Module, convention: Convention) -> None:
        super().__init__()
        self.inner, self.convention = inner, convention

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.convention.mean, self.convention.std))
        plain = image * std + mean
        plain = plain.flip(1) if self.convention.bgr else plain
        return self.inner((plain - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1))


def permuted(net: nn.Module, order: list[int]) -> nn.Module:
    """Channel `c` of the result answers to class `order[c]`."""
    turned = copy.deepcopy(net)
    with torch.no_grad():
        turned[3].weight.copy_(net[3].weight[order])
        turned[3].bias.copy_(net[3].bias[order])
    return turned


class TestHealthy:
    def test_no_problem_is_named(self, good, examine):
        exam = examine(good)
        assert exam.problems == []
        assert exam.miou > 0.9
        assert exam.pixel_accuracy > 0.95
        assert exam.images == 16
        assert max(exam.normalisations.values()) < exam.miou + 0.02

    def test_score_is_that_of_the_evaluation(self, good, view, task, examine):
        from densekd.evaluate import evaluate

        scores = evaluate(good, view, task, NAMES, device=CPU)
        exam = examine(good)
        assert (exam.miou, exam.pixel_accuracy) == pytest.approx((scores.miou, scores.pixel_accuracy), abs=1e-12)

    def test_a_clearly_better_teacher_than_the_student(self, good, task, examine):
        torch.manual_seed(3)
        student = trained(network(), task, 4, drawn(4, seed=5))
        exam = examine(good, student=student)
        assert exam.problems == []
        assert 0 < exam.student_miou < exam.miou - 0.05

    def test_nothing_is_left_behind(self, good, examine):
        good.train()
        before = copy.deepcopy(good.state_dict())
        random = torch.get_rng_state()
        examine(good, student=good)
        assert good.training
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(before[key], value) for key, value in good.state_dict().items())
        good.eval()

    def test_prepare_gives_the_teacher_its_own_images(self, good, task, view):
        own = Convention("own", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        exam = examine_teacher(
            Wants(good, own),
            view,
            task,
            NAMES,
            device=CPU,
            mean=own.mean,
            std=own.std,
            prepare=lambda image: own.apply(image, MEAN, STD),
        )
        assert exam.problems == []
        assert exam.miou > 0.9

    def test_as_dict_is_plain_json(self, good, examine):
        import json

        assert json.loads(json.dumps(examine(good).as_dict()))["images"] == 16


class TestPermuted:
    @pytest.mark.parametrize("order", [[1, 0, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0], [3, 2, 5, 0, 1, 4]])
    def test_is_named_with_its_pairs(self, good, examine, order):
        exam = examine(permuted(good, order))
        assert len(exam.problems) == 1
        assert exam.problems[0].startswith("permuted classes")
        for channel, answers_to in enumerate(order):
            said = f"channel {NAMES[channel]!r} answers to {NAMES[answers_to]!r}" in exam.problems[0]
            assert said == (channel != answers_to)

    def test_a_shift_is_told(self, good, examine):
        assert "shifted" in examine(permuted(good, [1, 2, 3, 4, 5, 0])).problems[0]
        assert "shifted" not in examine(permuted(good, [3, 2, 5, 0, 1, 4])).problems[0]

    def test_together_with_a_wrong_normalisation_both_are_named(self, good, examine):
        wanted = Convention("bytes", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
        exam = examine(Wants(permuted(good, [1, 0, 3, 2, 5, 4]), wanted))
        assert [problem.split(":")[0] for problem in exam.problems] == ["permuted classes", "wrong normalisation"]

    def test_not_called_worse_than_the_student_too(self, good, examine):
        exam = examine(permuted(good, [1, 0, 2, 3, 4, 5]), student=good)
        assert [problem.split(":")[0] for problem in exam.problems] == ["permuted classes"]
        assert exam.student_miou > exam.miou

    def test_binary_logit_with_the_wrong_sign(self):
        names = ("ground", "tree")
        task = SegmentationTask(SegmentationSpec(binary=True), 2, VOID, names)
        items = [
            {**item, "label": torch.where(item["label"] == VOID, VOID, (item["label"] == 2).long())}
            for item in drawn(16, seed=2)
        ]
        torch.manual_seed(0)
        net = trained(network(1), task, 60, items)
        with torch.no_grad():
            net[3].weight.neg_()
            net[3].bias.neg_()
        exam = examine_teacher(net, items, task, names, device=CPU, mean=MEAN, std=STD)
        assert len(exam.problems) == 1
        assert "logit is high where 'ground' is" in exam.problems[0]
        assert "negate" in exam.problems[0]


class TestNormalisation:
    @pytest.mark.parametrize("wanted", conventions(MEAN, STD), ids=lambda c: c.name)
    def test_each_convention_is_named_with_the_remedy(self, good, examine, wanted):
        exam = examine(Wants(good, wanted))
        assert len(exam.problems) == 1
        assert exam.problems[0].startswith("wrong normalisation")
        assert wanted.name in exam.problems[0]
        assert "teacher.mean=[" in exam.problems[0]
        assert ("flip(1)" in exam.problems[0]) == wanted.bgr

    def test_the_remedy_for_bgr_is_right(self, good, view, task):
        """Turning the first convolution round and setting mean and std as told is the convention itself."""
        wanted = next(c for c in conventions(MEAN, STD) if c.name.endswith("(Caffe)"))
        image = torch.stack([item["image"] for item in view])
        told = wanted.advice()
        mean, std = (
            torch.tensor([float(v) for v in told.split(f"teacher.{key}=[")[1].split("]")[0].split(",")]).view(
                1, 3, 1, 1
            )
            for key in ("mean", "std")
        )
        plain = image * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
        torch.manual_seed(0)
        first = nn.Conv2d(3, 4, 3)
        turned = copy.deepcopy(first)
        turned.weight.data = turned.weight.data.flip(1)
        expected = first(wanted.apply(image, MEAN, STD))
        assert torch.allclose(turned((plain - mean) / std), expected, atol=1e-2, rtol=1e-4)

    def test_convention_in_use_is_not_tried_against_itself(self):
        names = [convention.name for convention in conventions(MEAN, STD)]
        assert "ImageNet mean and std" not in names
        assert len(names) == len(set(names))
        assert len(conventions((0.5,) * 3, (0.5,) * 3)) == 6


class TestUnloaded:
    @pytest.mark.parametrize("seed", range(15))
    def test_untrained_head_on_trained_features(self, good, examine, seed):
        torch.manual_seed(seed)
        net = copy.deepcopy(good)
        nn.init.normal_(net[3].weight, std=0.1)
        nn.init.zeros_(net[3].bias)
        exam = examine(net, student=good)
        assert [problem.split(":")[0] for problem in exam.problems] == ["unloaded head"]
        assert "teacher.checkpoint" in exam.problems[0]

    @pytest.mark.parametrize("seed", range(15))
    def test_untrained_network(self, examine, seed):
        torch.manual_seed(seed)
        assert examine(network().eval()).problems[0].startswith("unloaded head")

    def test_one_class_everywhere(self, good, examine):
        net = copy.deepcopy(good)
        with torch.no_grad():
            net[3].bias[3] += 1e4
        problem = examine(net).problems[0]
        assert "answers 'car' for 100.0% of the pixels" in problem
        assert "always answering" in problem


class TestNoBetter:
    def test_than_the_student(self, good, task, examine):
        torch.manual_seed(3)
        weak = trained(network(), task, 8, drawn(4, seed=5))
        assert examine(weak).problems == []
        exam = examine(weak, student=good)
        assert len(exam.problems) == 1
        assert exam.problems[0].startswith("no better than the student")

    def test_the_student_itself_is_no_teacher(self, good, examine):
        assert examine(good, student=copy.deepcopy(good)).problems[0].startswith("no better than the student")


class TestRefusals:
    def test_no_images(self, good, task):
        with pytest.raises(DataError, match="got none"):
            examine_teacher(good, [], task, NAMES, device=CPU, mean=MEAN, std=STD)

    def test_only_void(self, good, task, view):
        items = [{**item, "label": torch.full_like(item["label"], VOID)} for item in view]
        with pytest.raises(DataError, match="no labelled pixel"):
            examine_teacher(good, items, task, NAMES, device=CPU, mean=MEAN, std=STD)

    def test_few_images_are_said_to_be_weak(self, good, task, view):
        exam = examine_teacher(good, view[:2], task, NAMES, device=CPU, mean=MEAN, std=STD)
        assert "only 2 images" in exam.notices[0]


class TestReading:
    def test_by_hand(self):
        reading = read(np.array([[6, 2], [1, 1]]))
        assert reading.miou == pytest.approx((6 / 9 + 1 / 4) / 2)
        assert reading.pixel_accuracy == pytest.approx(0.7)
        assert reading.kappa == pytest.approx((0.7 - (8 * 7 + 2 * 3) / 100) / (1 - 0.62))
        assert reading.constant_miou == pytest.approx((8 / 10 + 0) / 2)
        assert reading.favourite == (0, pytest.approx(0.7))

    def test_constant_answer_has_no_agreement_beyond_chance(self):
        assert read(np.array([[97, 0], [3, 0]])).kappa == 0

    def test_a_rider_called_person_where_there_are_no_persons_is_no_permutation(self):
        matrix = np.diag([500, 400, 300, 0, 0]).astype(np.int64)
        matrix[3, 4] = 100
        assert read(matrix).moved == ()

    def test_a_class_of_few_pixels_proves_nothing(self):
        matrix = np.diag([500_000, 400_000, 0, 0]).astype(np.int64)
        matrix[2, 3], matrix[3, 2] = 40, 40
        assert read(matrix).moved == ()
        matrix[2, 3], matrix[3, 2] = 4000, 4000
        assert read(matrix).moved == ((3, 2), (2, 3))

    def test_confusion_both_ways_is_no_permutation(self):
        matrix = np.diag([500, 400, 300, 300]).astype(np.int64)
        matrix[2, 3], matrix[3, 2] = 350, 350
        assert read(matrix).moved == ()


class TestAssignment:
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
    @pytest.mark.parametrize("seed", range(6))
    def test_is_the_best_of_all(self, size, seed):
        score = np.random.default_rng(seed).normal(size=(size, size)).round(1)
        chosen = best_assignment(score)
        assert sorted(chosen) == list(range(size))
        best = max(sum(score[r, c] for r, c in enumerate(p)) for p in itertools.permutations(range(size)))
        assert sum(score[r, c] for r, c in enumerate(chosen)) == pytest.approx(best)

    def test_a_hidden_permutation_of_many_rows(self):
        generator = np.random.default_rng(0)
        hidden = generator.permutation(150)
        score = generator.uniform(0, 0.5, (150, 150))
        score[np.arange(150), hidden] = 0.6
        assert best_assignment(score) == hidden.tolist()

    def test_refuses_what_is_not_square(self):
        with pytest.raises(ShapeError, match="square"):
            best_assignment(np.zeros((2, 3)))
