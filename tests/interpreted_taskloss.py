"""The Triton kernels of upsampled_cross_entropy and pixelwise_kl under Triton's interpreter; run by
test_triton_taskloss.py.

Every value and gradient is compared with float64. Inputs lie in buffers full of NaN, outputs are full of NaN before the
kernels run and have guards around them; the same checks must fail for kernels that are wrong on purpose.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import pytest
import torch

from triton_tiers import changed_copy, mend_interpreter, poisoned, surrounded

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from densekd import functional as F
from densekd.kernels import triton_pixelwise_host as pixelwise
from densekd.kernels import triton_upsampled_host as upsampled

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on lanes that lie beside the map

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ROUNDING = {F32: 5e-6, BF16: 4e-3, F16: 6e-4}


@dataclass(frozen=True)
class Case:
    """One call of upsampled_cross_entropy."""

    small: tuple[int, int] = (2, 5)
    full: tuple[int, int] = (7, 17)
    classes: int = 3
    images: int = 2
    dtype: torch.dtype = F32
    labels: torch.dtype = torch.int64
    layout: str = "contiguous"
    align_corners: bool = False
    weighted: bool = False
    smoothing: float = 0.0

    def tensors(self):
        generator = torch.Generator().manual_seed(self.classes)
        logits = 4.0 * torch.randn(self.images, self.classes, *self.small, generator=generator)
        labels = torch.randint(0, self.classes, (self.images, *self.full), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
        weights = torch.rand(self.classes, generator=generator) + 0.1 if self.weighted else None
        logits = arranged(logits.to(self.dtype), self.layout)
        return surrounded(logits), surrounded(labels.to(self.labels), 77), weights


def arranged(x, layout):
    """The same map, laid out another way."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return torch.cat([x, x], 3)[..., : x.shape[3]]
    return x.contiguous()


def exact(case, logits, labels, weights):
    """Sum of the loss, of the weights, and the gradient of the first, by torch in float64."""
    leaf = logits.double().requires_grad_()
    z = torch.nn.functional.interpolate(leaf, case.full, mode="bilinear", align_corners=case.align_corners)
    w = None if weights is None else weights.double()
    total = torch.nn.functional.cross_entropy(
        z, labels.long(), w, ignore_index=255, label_smoothing=case.smoothing, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(total, leaf)
    valid = labels[labels != 255].long()
    return total.detach(), float(len(valid)) if w is None else w[valid].sum().item(), gradient


def check(case, monkeypatch):
    logits, labels, weights = case.tensors()
    asked = (weights, case.smoothing, 255, case.align_corners)
    upsampled.reach.cache_clear()
    with poisoned(monkeypatch) as buffers:
        total, size, kept = upsampled.triton_sums(logits, labels, *asked, True)
        plain, _, none = upsampled.triton_sums(logits, labels, *asked, False)
        assert buffers
    assert plain == total
    assert none.numel() == 0
    assert (total.dtype, kept.dtype) == (F32, F32)
    expected, weight, slope = exact(case, logits, labels, weights)
    assert total.item() == pytest.approx(expected.item(), rel=5e-6)
    assert size.item() == pytest.approx(weight, rel=1e-6)
    assert kept.isfinite().all()
    torch.testing.assert_close(kept.double(), slope, rtol=1e-4, atol=2e-5)
    assert (kept - slope).norm() <= 5e-6 * slope.norm()


def check_all(one, cases, monkeypatch):
    for case in cases:
        one(case, monkeypatch)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Several programs and several tiles of each even for small maps; bf16 rounded as GPUs do."""
    mend_interpreter(monkeypatch)
    monkeypatch.setattr(upsampled, "PIECE", 16)
    monkeypatch.setattr(upsampled, "AT_A_TIME", 8)
    monkeypatch.setattr(upsampled, "SMALL", 4)
    monkeypatch.setattr(pixelwise, "TILE", 32)
    monkeypatch.setattr(pixelwise, "CHANNELS", 4)


CASES = [
    Case(),
    Case(layout="channels_last", dtype=BF16, align_corners=True, weighted=True, smoothing=0.1),
    Case((6, 7), (4, 5), labels=torch.uint8),
    Case((2, 9), (3, 19), classes=19, images=1),
]
MORE_CASES = [
    Case((1, 1), (4, 3), align_corners=True),
    Case((2, 9), (5, 19), classes=37, images=1),
    *(Case(dtype=dtype, layout=layout) for dtype in (F32, F16, BF16) for layout in ("contiguous", "channels_last")),
    *(Case(layout=layout) for layout in ("transposed", "sliced")),
    *(Case(align_corners=True, weighted=weighted, smoothing=s) for weighted in (False, True) for s in (0.0, 0.1)),
    *(Case(weighted=weighted, smoothing=0.2) for weighted in (False, True)),
    *(Case((4, 1), (1, 8), align_corners=align) for align in (False, True)),
    Case(labels=torch.int32),
    Case((1, 1), (4, 3)),
    Case((6, 7), (4, 5), align_corners=True),
    Case((4, 4), (4, 4)),
    Case((3, 12), (25, 97), classes=19, images=1),
]


def later(cases):
    """For `make test-long`."""
    return [pytest.param(case, marks=pytest.mark.long) for case in cases]


@pytest.mark.parametrize("case", [*CASES, *later(MORE_CASES)], ids=str)
def test_up_sampling_agrees_with_float64(case, monkeypatch):
    check(case, monkeypatch)


WRONG = {
    "void counts": ("valid = there & (label != ignore_index)", "valid = there"),
    "half of the last small row is lost": ("tl.where(y0 == small_height - 1, 1.0, 1.0 - u)", "1.0 - u"),
    "running sum of the wrong maximum": ("mass * tl.exp2(top - larger)", "mass"),
    "weight of the wrong neighbour": ("== j[None, :], t[:, None], 0.0)", "== j[None, :], (1.0 - t)[:, None], 0.0)"),
    "gradient written past the row": (" & (j < small_width)[None, :]", ""),
    "images mixed up": ("base = logits + image * x_n", "base = logits"),
    "labels of another row": ("image * y_n + r * y_h", "image * y_n + first * y_h"),
    "true class left out": ("slope -= tl.where(c[:, None] == label[None, :], weight[None, :], 0.0)", "slope -= 0.0"),
}
FIRST = ("half of the last small row is lost",)


@pytest.mark.parametrize("fault", [*FIRST, *later([fault for fault in WRONG if fault not in FIRST])])
def test_the_checks_find_a_wrong_up_sampling(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(upsampled, "kernels", changed_copy(upsampled.kernels, tmp_path, *WRONG[fault]))
    cases = (Case(), Case((2, 9), (5, 19), classes=37, images=1), Case((2, 3), (9, 40)))
    with pytest.raises(AssertionError):
        check_all(check, cases, monkeypatch)


FAR = 2**31 + 96


@pytest.mark.parametrize(
    ("images", "strides"),
    [
        (3, (FAR // 2, 15, 5, 1)),
        (1, (0, FAR // 2, 5, 1)),
        (1, (0, 5, FAR // 2, 1)),
        (1, (0, 3, 1, FAR // 4)),
    ],
    ids=["images", "channels", "rows", "columns"],
)
def test_up_sampling_beyond_two_billion(images, strides):
    """Logits that end 2**31 elements apart, each step within 32 bits; pages that nobody touches take no memory."""
    logits, labels, _ = Case((3, 5), images=images, dtype=F16).tensors()
    wide = torch.empty(FAR + 128, dtype=F16).as_strided(logits.shape, strides).copy_(logits)
    asked = (None, 0.0, 255, False, False)
    assert torch.equal(upsampled.triton_sums(wide, labels, *asked)[0], upsampled.triton_sums(logits, labels, *asked)[0])


def test_an_unknown_label_is_a_loss_that_is_no_number():
    logits, labels, _ = Case().tensors()
    for bad in (3, -1, 2**40):
        wrong = labels.clone()
        wrong[1, 2, 2] = bad
        assert F.upsampled_cross_entropy(logits, wrong, backend="triton").isnan()
    assert F.upsampled_cross_entropy(logits, labels, backend="triton").isfinite()


def test_up_sampling_through_the_function():
    logits, labels, weights = Case(dtype=BF16).tensors()
    leaf = logits.detach().requires_grad_()
    pixels = torch.tensor(50.0)
    values = []
    for backend in ("triton", "torch"):
        value = F.upsampled_cross_entropy(leaf, labels, class_weights=weights, pixels=pixels, backend=backend)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert gradient.dtype == BF16
        values.append((value.detach(), gradient.float()))
    torch.testing.assert_close(*(value for value, _ in values), rtol=5e-6, atol=0)
    torch.testing.assert_close(*(gradient for _, gradient in values), rtol=1e-2, atol=1e-6)
    void = torch.full_like(labels, 255)
    value = F.upsampled_cross_entropy(leaf, void, backend="triton")
    (gradient,) = torch.autograd.grad(value, leaf)
    assert value == 0
    assert not gradient.any()


@dataclass(frozen=True)
class Pixels:
    """One call of pixelwise_kl; 4 channels are a tile here."""

    shape: tuple[int, ...] = (2, 3, 5, 7)
    dtype: torch.dtype = F32
    teacher: torch.dtype | None = None
    layout: str = "contiguous"
    masked: bool = False
    temperature: float = 1.0
    std: float = 4.0

    def maps(self):
        generator = torch.Generator().manual_seed(len(self.shape))
        student, teacher = (self.std * torch.randn(self.shape, generator=generator) for _ in range(2))
        mask = None
        if self.masked:
            mask = torch.rand(self.shape[:1] + self.shape[2:], generator=generator) < 0.5
            void = ~mask[:, None].expand(self.shape)
            student, teacher = student.masked_fill(void, math.nan), teacher.masked_fill(void, math.inf)
        student, teacher = student.to(self.dtype), teacher.to(self.teacher or self.dtype)
        return surrounded(arranged(student, self.layout)), surrounded(arranged(teacher, self.layout)), mask


def check_pixels(case, monkeypatch):
    student, teacher, mask = case.maps()
    with poisoned(monkeypatch) as buffers:
        values, kept = pixelwise.triton_positions(student, teacher, mask, case.temperature, True)
        plain, none = pixelwise.triton_positions(student, teacher, mask, case.temperature, False)
        assert buffers
    assert torch.equal(values, plain)
    assert none.numel() == 0
    assert (values.dtype, kept.dtype) == (F32, case.dtype)
    s, t = (x.double() / case.temperature for x in (student, teacher))
    if mask is not None:
        s, t = (x.masked_fill(~mask[:, None], 0.0) for x in (s, t))
    log_q, log_p = torch.log_softmax(s, 1), torch.log_softmax(t, 1)
    expected = case.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)
    slope = log_q.exp() - log_p.exp()
    if mask is not None:
        expected, slope = expected.masked_fill(~mask, 0.0), slope.masked_fill(~mask[:, None], 0.0)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=2e-6 * case.temperature**2)
    assert (kept.double() - slope).norm() <= ROUNDING[case.dtype] * slope.norm()


PIXELS = [
    *(Pixels(dtype=dtype, layout=layout) for dtype in (F32, F16, BF16) for layout in ("contiguous", "channels_last")),
    *(Pixels((1, 11, 3, 5), dtype=dtype, masked=masked) for dtype in (F32, BF16) for masked in (False, True)),
    *(Pixels(layout=layout, masked=True) for layout in ("channels_last", "transposed", "sliced")),
    Pixels(dtype=BF16, teacher=F32),
    *(Pixels(temperature=tau, std=std) for tau, std in ((0.5, 4.0), (4.0, 40.0))),
    *(Pixels(shape) for shape in ((1, 2, 9), (1, 4, 2, 3, 5), (3, 5, 1, 1))),
]


@pytest.mark.parametrize("case", [*PIXELS[5:8], *later(PIXELS[:5] + PIXELS[8:])], ids=str)
def test_pixels_agree_with_float64(case, monkeypatch):
    check_pixels(case, monkeypatch)


WRONG_PIXELS = {
    "ignores the mask": ("there & (tl.load(mask + image * places + p, mask=there, other=0) != 0)", "there"),
    "running sum of the wrong maximum": ("mass * tl.exp2((top - base) * inverse)", "mass"),
    "a channel left out": ("inside = c < channels", "inside = c < channels - 1"),
    "gradient written past the map": ("mask=inside[:, None] & there[None, :])", "mask=inside[:, None])"),
    "images mixed up": ("teacher += image * t_n", "teacher += 0"),
    "normalisers left out": (" + tl.log(s_mass / t_mass)", ""),
}


@pytest.mark.parametrize("fault", ["ignores the mask", *later([x for x in WRONG_PIXELS if x != "ignores the mask"])])
def test_the_checks_find_wrong_pixels(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(pixelwise, "kernels", changed_copy(pixelwise.kernels, tmp_path, *WRONG_PIXELS[fault]))
    with pytest.raises(AssertionError):
        check_all(check_pixels, (Pixels(), Pixels((1, 11, 3, 5)), Pixels(masked=True)), monkeypatch)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((3, 3, 4, 8), (FAR // 2, 32, 8, 1)),
        ((1, 3, 4, 8), (0, FAR // 2, 8, 1)),
        ((1, 11, 4, 8), (0, FAR // 10, 8, 1)),
        ((1, 1, 4, 8), (0, 0, 8 * (FAR // 31), FAR // 31)),
    ],
    ids=["images", "channels", "channels of several tiles", "positions"],
)
def test_pixels_beyond_two_billion(shape, strides):
    small, teacher, _ = Pixels(shape, dtype=F16).maps()
    student = torch.empty(FAR + 128, dtype=F16).as_strided(shape, strides).copy_(small)
    expected = pixelwise.triton_positions(small, teacher, None, 1.0, False)[0]
    assert torch.equal(pixelwise.triton_positions(student, teacher, None, 1.0, False)[0], expected)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_pixels_are_finite_for_the_largest_logits(temperature):
    big = torch.finfo(F32).max
    student, teacher = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    student[0, 0, 0, 0], student[0, 1, 0, 0], teacher[0, 1, 0, 0], teacher[0, 2, 1, 1] = big, -big, big, -big
    for reduction in ("mean", "sum"):
        value = F.pixelwise_kl(student, teacher, temperature=temperature, reduction=reduction, backend="triton")
        plain = F.pixelwise_kl(student, teacher, temperature=temperature, reduction=reduction, backend="torch")
        assert value.isfinite()
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=0)


def test_pixels_through_the_function():
    student, teacher, mask = Pixels(masked=True, layout="channels_last").maps()
    leaf = student.detach().requires_grad_()
    weights = torch.rand(2, 5, 7)
    found = []
    for backend in ("triton", "torch", "blocked"):
        rows = F.pixelwise_kl(leaf, teacher, mask=mask, reduction="none", temperature=3.0, backend=backend)
        (gradient,) = torch.autograd.grad((weights * rows).sum(), leaf, retain_graph=True)
        (again,) = torch.autograd.grad((weights * rows).sum(), leaf)
        assert torch.equal(gradient, again)
        found.append((rows.detach(), gradient))
    for rows, gradient in found[1:]:
        torch.testing.assert_close(found[0][0], rows, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[0][1], gradient, rtol=1e-4, atol=1e-6)
    equal = F.pixelwise_kl(teacher[:1, :, :1], teacher[:1, :, :1].clone(), mask=mask[:1, :1], backend="triton")
    assert equal == 0
