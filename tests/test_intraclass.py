"""intraclass_mse against loops over positions, and against the loop over classes it replaces."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.intraclass import intraclass_mse
from densekd.losses.intraclass import IntraClass
from mapkit import (
    SHAPES,
    check_compiled,
    check_graph,
    check_refusals,
    check_scale,
    check_types,
    check_void,
    maps,
    some_mask,
    spoilt,
    value_and_gradient,
)

CLASSES = 4


def labels_for(like, void=0.2, classes=CLASSES, seed=2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (like.shape[0], *like.shape[2:]), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void] = 255
    return labels


def loss_of(labels, classes=CLASSES):
    """The function with these labels, as a loss between two maps."""
    return lambda s, t, **more: intraclass_mse(s, t, labels, num_classes=classes, **more)


def cosines(image, labels):
    """{position: cosine to the mean of its class} of (C, P), in Python's floats."""
    vectors = dict(zip([i for i, y in enumerate(labels) if y != 255], image, strict=True))
    found = {}
    for i, own in vectors.items():
        members = [v for j, v in vectors.items() if labels[j] == labels[i]]
        centre = [math.fsum(values) / len(members) for values in zip(*members, strict=True)]
        inner = math.fsum(a * b for a, b in zip(own, centre, strict=True))
        found[i] = inner / math.hypot(*own) / math.hypot(*centre)
    return found


def literal(student, teacher, labels, mask=None):
    """The terms of the positions that count."""
    if mask is not None:
        labels = torch.where(mask, labels, 255)
    found = []
    for s, t, y in zip(student.detach().double(), teacher.double(), labels, strict=True):
        own, its = (cosines(x[:, y != 255].T.tolist(), y.flatten().tolist()) for x in (s, t))
        found.extend((own[i] - its[i]) ** 2 for i in own)
    return found


def by_loop(student, teacher, labels, classes):
    """A loop over the classes, as the public codes have it; the mean is over all positions."""

    def spread(x):
        centres = x.clone()
        for k in range(classes):
            members = (labels == k)[:, None].to(x.dtype)
            mean = (members * x).sum((2, 3), keepdim=True) / members.sum((2, 3), keepdim=True).clamp(min=1)
            centres = (1 - members) * centres + members * mean
        return torch.nn.functional.cosine_similarity(x, centres, dim=1)

    return (spread(student) - spread(teacher)).square().mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("channels", "shape"), SHAPES, ids=str)
def test_is_the_formula_with_its_reductions(channels, shape, masked):
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        student, teacher = maps(channels, shape, dtype=dtype)
        labels = labels_for(student)
        mask = some_mask(student) if masked else None
        terms = literal(student, teacher, labels, mask)
        loss = loss_of(labels)
        mean, total, none = (loss(student, teacher, mask=mask, reduction=how) for how in ("mean", "sum", "none"))
        assert (none.shape, none.dtype, mean.dtype) == (labels.shape, dtype, dtype)
        assert mean.item() == pytest.approx(sum(terms) / len(terms), rel=rel, abs=1e-9)
        assert total.item() == pytest.approx(sum(terms), rel=rel, abs=1e-8)
        valid = labels != 255 if mask is None else mask & (labels != 255)
        assert none[valid].tolist() == pytest.approx(terms, rel=1e-3, abs=1e-6)
        assert not none[~valid].any()


@pytest.mark.parametrize(
    ("channels", "shape", "classes"),
    [(16, (2, 24, 9, 7), 19), pytest.param(512, (2, 512, 64, 64), 19, marks=pytest.mark.slow)],
    ids=str,
)
def test_is_the_loop_over_the_classes(channels, shape, classes):
    student, teacher = maps(channels, shape)
    labels = labels_for(student, classes=classes, void=0.0)
    value, gradient = value_and_gradient(loss_of(labels, classes), student, teacher)
    expected, slope = value_and_gradient(lambda s, t: by_loop(s, t, labels, classes), student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-5 * slope.abs().max().item())
    # void counts in the loop's mean, as zeros
    labels[:, ::2] = 255
    share = (labels != 255).double().mean().item()
    value, expected = loss_of(labels, classes)(student, teacher), by_loop(student, teacher, labels, classes)
    assert value.item() * share == pytest.approx(expected.item(), rel=1e-6)


def test_gradcheck_with_a_mask():
    student, teacher = maps(5, (2, 3, 3, 4), dtype=torch.float64)
    labels, mask = labels_for(student), some_mask(student)
    torch.autograd.gradcheck(lambda s: loss_of(labels)(s, teacher, mask=mask), student)


def test_what_any_loss_keeps():
    student, teacher = maps(5, (3, 3, 4, 6))
    labels = labels_for(student)
    check_void(loss_of(labels), student, teacher, some_mask(student))
    check_types(loss_of(labels), student, teacher)
    check_graph(loss_of(labels), student, teacher)
    turns = {3: labels, 9: torch.cat([labels] * 3)}
    check_scale(lambda s, t: loss_of(turns[len(s)])(s, t), student, teacher)
    assert loss_of(labels)(student, student.detach().clone()) == 0


def test_a_void_label_is_a_mask():
    student, teacher = maps(5, (2, 3, 4, 6))
    labels = labels_for(student, void=0.0)
    mask = some_mask(student)
    expected, slope = value_and_gradient(loss_of(labels), student, teacher, mask=mask)
    # beneath the mask a label must still be one
    for other in (torch.where(mask, labels, 255), torch.where(mask, labels, 0)):
        value, gradient = value_and_gradient(loss_of(other), student, teacher, mask=mask)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, slope)
    void = torch.where(mask, labels, 255)
    for bad in (torch.nan, torch.inf):
        value, gradient = value_and_gradient(loss_of(void), spoilt(student, mask, bad), spoilt(teacher, mask, bad))
        assert torch.equal(value, expected)
        assert torch.equal(gradient, slope)
    void = torch.where(mask, labels, -1)
    assert intraclass_mse(student, teacher, void, num_classes=4, ignore_index=-1) == expected
    value, gradient = value_and_gradient(loss_of(torch.full_like(labels, 255)), student, teacher)
    assert value == 0
    assert not gradient.any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.permutations(range(CLASSES)))
def test_neither_names_nor_places_nor_sizes_matter(seed, size, names):
    student, teacher = (x.detach() for x in maps(2, (2, 3, 4, 5), seed=seed, dtype=torch.float64))
    labels = labels_for(student, seed=seed, void=0.0)
    value = loss_of(labels)(student, teacher).item()
    assert 0 <= value <= 4
    renamed = torch.tensor(names)[labels]
    assert loss_of(renamed, 9)(student, teacher).item() == pytest.approx(value, rel=1e-9)
    assert loss_of(labels)(size * student, -teacher).item() == pytest.approx(value, rel=1e-9)
    finer = [x.repeat_interleave(2, -2).repeat_interleave(3, -1) for x in (student, teacher, labels)]
    assert loss_of(finer[2])(*finer[:2]).item() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("size", [1e4, 1e30, torch.finfo(torch.float32).max])
def test_the_same_for_values_of_any_size(size):
    student, teacher = (x.detach() / x.detach().abs().max() for x in maps(5, (2, 3, 4, 6)))
    loss = loss_of(labels_for(student))
    expected, slope = value_and_gradient(loss, student, teacher)
    value, gradient = value_and_gradient(loss, size * student, size * teacher)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double() * size, slope.double(), rtol=1e-4, atol=1e-6)


def test_zero_vectors_and_lone_members():
    student, teacher = maps(5, (1, 3, 2, 4))
    labels = torch.tensor([[[0, 0, 0, 1], [2, 2, 2, 2]]])
    student = student.detach().clone()
    student[0, :, 0, 0] = 0.0
    student[0, :, 1] = 0.0
    none = loss_of(labels)(student, teacher, reduction="none")
    value, gradient = value_and_gradient(loss_of(labels), student, teacher)
    assert none[0, 0, 3].item() == pytest.approx(0.0, abs=1e-12)
    its = loss_of(labels)(torch.zeros_like(teacher), teacher, reduction="none")
    assert none[0, 0, 0] == its[0, 0, 0]
    assert torch.equal(none[0, 1], its[0, 1])
    assert value > 0
    assert gradient.isfinite().all()
    assert not gradient[0, :, 1].any()


@pytest.mark.slow
def test_compiles_to_one_graph():
    student, teacher = maps(5, (2, 3, 4, 6))
    check_compiled(lambda s, t, y: intraclass_mse(s, t, y, num_classes=CLASSES), student, teacher, labels_for(student))


def test_misuse_is_named():
    x, labels = torch.zeros(2, 3, 4, 8), torch.zeros(2, 4, 8, dtype=torch.long)
    check_refusals(intraclass_mse, labels, num_classes=3)
    cases = [
        (labels + 3, {}, ArgumentError, "values from 3 to 3; expected class ids 0 to 2 or the ignore_index 255"),
        (labels - 1, {}, ArgumentError, "values from -1 to -1; expected class ids 0 to 2"),
        (labels + 255, {"ignore_index": 0}, ArgumentError, "values from 255 to 255.*ignore_index 0"),
        (labels[:, :2], {}, ShapeError, r"labels: expected.*\(2, 4, 8\), got \(2, 2, 8\)"),
        (labels.float(), {}, DtypeError, "expected integer class ids"),
        (None, {}, DtypeError, "expected an integer tensor"),
        (labels, {"num_classes": 0}, ArgumentError, "num_classes: expected a whole number of at least 1, got 0"),
        (labels, {"num_classes": None}, ArgumentError, "num_classes: expected a whole number of at least 1, got None"),
    ]
    for given_labels, wrong, error, words in cases:
        with pytest.raises(error, match=words):
            intraclass_mse(x, x, given_labels, **({"num_classes": 3} | wrong))
    with pytest.raises(ArgumentError, match="num_classes: expected"):
        IntraClass(num_classes=2.5)


def test_the_module_is_the_function():
    student, teacher = maps(5, (2, 3, 4, 6))
    labels, mask = labels_for(student), some_mask(student)
    loss = IntraClass()
    with pytest.raises(ArgumentError, match=r"does not know the number of classes: write IntraClass\(num_classes=19\)"):
        loss(student, teacher, labels)
    with pytest.raises(ArgumentError, match="does not know the number of classes"):
        loss.bind(student.shape, teacher.shape, None)
    loss.bind(student.shape, teacher.shape, CLASSES)
    assert loss(student, teacher, labels, mask) == loss_of(labels)(student, teacher, mask=mask)
    with pytest.raises(ArgumentError, match="IntraClass needs labels"):
        loss(student, teacher)
    own = IntraClass(num_classes=7, ignore_index=6)
    own.bind(student.shape, teacher.shape, CLASSES)
    assert "num_classes=7, ignore_index=6" in repr(own)
    assert IntraClass.needs == {"labels"}
    assert not IntraClass.equal_channels


def test_in_a_distiller_features_need_no_adapter():
    torch.manual_seed(0)
    student, teacher = (
        torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(width, CLASSES, 1))
        for width in (4, 9)
    )
    images = torch.randn(2, 3, 8, 12)
    labels = labels_for(images)
    distiller = Distiller(student, teacher, [Term(IntraClass(), student="0", teacher="0")], images)
    assert not list(distiller.adapters.parameters())
    out = distiller(images, labels=labels)
    out.loss.backward()
    assert out.loss > 0
    assert student[0].weight.grad.any()
    with pytest.raises(ArgumentError, match="needs labels"):
        distiller(images)
