"""The class map: a teacher's logits in the label set of a student, against hand calculations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.class_map import ClassMap, in_student_classes
from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError
from densekd.losses import ChannelWise, Decoupled, Dist, PixelWise


class TestClassMap:
    def test_merges_probabilities(self) -> None:
        logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
        merged = ClassMap([[1], [0, 3], [4, 2]]).teacher(logits)
        p = logits.softmax(1)
        expected = torch.stack([p[:, 1], p[:, 0] + p[:, 3], p[:, 4] + p[:, 2]], 1)
        torch.testing.assert_close(merged.softmax(1), expected)

    def test_unknown_classes_are_left_out_of_both(self) -> None:
        classes = ClassMap([[1], [], [0, 2]])
        logits = torch.randn(1, 3, 2, 2)
        assert torch.equal(classes.student(logits), logits[:, [0, 2]])
        assert classes.teacher(logits).shape == (1, 2, 2, 2)
        whole = ClassMap([[0], [1]])
        assert whole.student(logits) is logits

    def test_refused(self) -> None:
        with pytest.raises(ArgumentError, match="for student class 1 a list of teacher class numbers, got 3"):
            ClassMap([[0], 3])  # type: ignore[list-item]
        with pytest.raises(ArgumentError, match=r"student class 0 names a teacher class twice: \[1, 1\]"):
            ClassMap([[1, 1]])
        with pytest.raises(ArgumentError, match=r"teacher class 2 is in the groups of student classes 0 and 2"):
            ClassMap([[1, 2], [0], [2]])
        with pytest.raises(ArgumentError, match="no student class has a teacher class"):
            ClassMap([[], []])
        with pytest.raises(ArgumentError, match="has 2 entries, the student has 3 classes"):
            ClassMap([[0], [1]]).check(3, 5)
        with pytest.raises(ArgumentError, match=r"names teacher class 5, but the teacher has 5 classes \(0..4\)"):
            ClassMap([[0], [5]]).check(2, 5)

    def test_a_hand_calculation(self) -> None:
        # Three teacher classes with odds 1 : 2 : 5; the second student class is the teacher's first two.
        logits = torch.tensor([1.0, 2.0, 5.0]).log().view(1, 3, 1, 1)
        mapped = ClassMap([[2], [0, 1]]).teacher(logits)
        assert mapped.flatten().tolist() == pytest.approx([math.log(5), math.log(3)])
        assert mapped.softmax(1).flatten().tolist() == pytest.approx([5 / 8, 3 / 8])
        # Without its class of odds 5, what is left is shared out in proportion.
        dropped = ClassMap([[0], [1]]).teacher(logits).softmax(1)
        assert dropped.flatten().tolist() == pytest.approx([1 / 3, 2 / 3])
        # One logit for two classes: its sigmoid is the probability of the second.
        single = ClassMap([[2], [0, 1]]).teacher(logits, 1)
        assert single.shape == (1, 1, 1, 1)
        assert single.sigmoid().item() == pytest.approx(3 / 8)

    @given(st.permutations(range(6)), st.integers(1, 4), st.integers(0, 2**31))
    @settings(max_examples=25, deadline=None)
    def test_a_class_has_the_probability_of_its_group_among_all_groups(
        self, order: list[int], cut: int, seed: int
    ) -> None:
        groups = [order[:cut], order[cut:5]]  # the last teacher class is dropped
        logits = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[..., None] * 9
        p = logits.softmax(1)
        sums = torch.stack([p[:, group].sum(1) for group in groups], 1)
        torch.testing.assert_close(ClassMap(groups).teacher(logits).softmax(1), sums / sums.sum(1, keepdim=True))

    def test_half_precision_is_joined_in_float32(self) -> None:
        logits = torch.tensor([100.0, 100.0]).view(1, 2, 1, 1).to(torch.bfloat16)
        merged = ClassMap([[0, 1]]).teacher(logits)
        assert merged.dtype == torch.float32
        assert merged.item() == pytest.approx(100 + math.log(2))

    def test_a_whole_map_never_answers_an_unknown_class(self) -> None:
        logits = torch.tensor([3.0, 4.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        whole = ClassMap([[2], [], [0, 1]]).whole(logits, 3)
        assert whole.shape == (1, 3, 2, 2)
        assert torch.equal(whole.argmax(1), torch.full((1, 2, 2), 2))
        resized = F.interpolate(whole.half().float(), (5, 5), mode="bilinear")
        assert bool(resized.isfinite().all())
        assert resized.softmax(1)[:, 1].max() == 0

    def test_one_logit_needs_both_classes(self) -> None:
        with pytest.raises(ArgumentError, match="one logit needs teacher classes for both"):
            ClassMap([[0], []]).check(1, 3)
        ClassMap([[0], [1, 2]]).check(1, 3)
        assert ClassMap([[0], [1, 2]]).channels(1) == 1
        assert ClassMap([[0], [1, 2]]).channels(2) == 2


def test_a_hook_maps_the_output_and_is_removed() -> None:
    teacher = nn.Conv2d(3, 3, 1)
    images = torch.randn(1, 3, 2, 2)
    classes = ClassMap([[2], [0, 1]])
    with in_student_classes(teacher, classes, 2):
        inside = teacher(images)
    plain = teacher(images)
    assert plain.shape[1] == 3
    assert torch.equal(inside, classes.teacher(plain))
    with in_student_classes(teacher, None, 2):
        assert torch.equal(teacher(images), plain)


class TestDistilled:
    """A distiller with a map is one whose teacher gives the mapped logits itself."""

    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))

    def network(self, classes: int) -> nn.Module:
        torch.manual_seed(classes)
        return nn.Conv2d(3, classes, 1)

    def value(self, term: Term, teacher: nn.Module, student: int, groups: list[list[int]] | None = None) -> Tensor:
        distiller = Distiller(self.network(student), teacher, [term], self.images, class_map=groups)
        labels = torch.zeros(2, 4, 4, dtype=torch.long)
        return distiller(self.images, labels=labels).loss

    @pytest.mark.parametrize("loss", [ChannelWise, PixelWise, Dist, Decoupled])
    def test_every_method_that_compares_class_maps(self, loss: type) -> None:
        groups = [[4], [0, 3], [1]]
        teacher = self.network(5)

        class Mapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = teacher

            def forward(self, images: Tensor) -> Tensor:
                z = self.inner(images)
                return torch.stack([z[:, 4], z[:, [0, 3]].exp().sum(1).log(), z[:, 1]], 1)

        found = self.value(Term(loss()), teacher, 3, groups)
        torch.testing.assert_close(found, self.value(Term(loss()), Mapped(), 3))
        assert found.item() > 0

    def test_a_student_with_one_logit(self) -> None:
        groups = [[0, 2], [1]]
        teacher = self.network(3)
        found = self.value(Term(ChannelWise()), teacher, 1, groups)
        z = teacher(self.images)
        p = z.softmax(1)
        logit = torch.logit(p[:, 1]).flatten(1)  # of the second class; softmax over positions as ChannelWise has it
        own = self.network(1)(self.images)[:, 0].flatten(1)
        target, answer = (logit / 4).softmax(1), (own / 4).log_softmax(1)
        expected = 16 * (target * (target.log() - answer)).sum() / 2
        torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4, check_dtype=False)
