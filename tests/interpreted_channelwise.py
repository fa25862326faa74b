"""The Triton kernels of channelwise_kl under Triton's interpreter; run by test_triton_channelwise.py.

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
from densekd.kernels import triton_channelwise_host as host
from densekd.kernels.channelwise_plan import Plan, gradient_scale

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on lanes that lie beside the map

PLANS = {
    "resident": None,
    "streamed": Plan("streamed", 4, 16, 4),
    "split": Plan("split", 2, 32, 4, 2, 32),
}
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...] = (2, 3, 5, 7)
    dtype: torch.dtype = F32
    teacher: torch.dtype | None = None
    layout: str = "contiguous"
    masked: bool = False
    way: str = "resident"
    temperature: float = 4.0
    std: float = 4.0
    noise: float | None = None  # of a student near the teacher

    def maps(self):
        generator = torch.Generator().manual_seed(len(self.shape))
        student, teacher = (self.std * torch.randn(self.shape, generator=generator) for _ in range(2))
        if self.noise is not None:
            student = teacher + self.noise * student
        mask = None
        if self.masked:
            mask = torch.rand(self.shape[:1] + self.shape[2:], generator=generator) < 0.5
            mask[0] = False  # an image with nothing valid
            void = ~mask[:, None].expand(self.shape)
            student, teacher = student.masked_fill(void, math.nan), teacher.masked_fill(void, math.inf)
        student, teacher = student.to(self.dtype), teacher.to(self.teacher or self.dtype)
        return surrounded(arranged(student, self.layout)), surrounded(arranged(teacher, self.layout, True)), mask

    def plan(self):
        positions = math.prod(self.shape[2:])
        return (
            PLANS[self.way]
            if positions <= 64 or self.way != "split"
            else Plan("split", 2, 32, 4, -(-positions // 64), 64)
        )


def arranged(x, layout, teacher=False):
    """The same map, laid out another way."""
    if layout == "channels_last" or layout == ("mixed teacher" if teacher else "mixed student"):
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return torch.cat([x, x], 3)[..., : x.shape[3]]
    if layout == "swapped":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.contiguous()


def exact(student, teacher, temperature, mask=None):
    """Rows temperature**2 * KL and the gradient of their sum in float64, over the valid positions alone."""
    n, c = student.shape[:2]
    rows, gradient = torch.zeros(n, c, dtype=torch.float64), torch.zeros(student.shape, dtype=torch.float64)
    for image in range(n):
        keep = torch.ones(student[0, 0].numel(), dtype=torch.bool) if mask is None else mask[image].flatten()
        if not keep.any():
            continue
        s, t = (x[image].double().flatten(1)[:, keep] / temperature for x in (student, teacher))
        log_q, log_p = torch.log_softmax(s, 1), torch.log_softmax(t, 1)
        rows[image] = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)
        flat = torch.zeros(c, keep.numel(), dtype=torch.float64)
        flat[:, keep] = temperature * (log_q.exp() - log_p.exp())
        gradient[image] = flat.view(student.shape[1:])
    return rows, gradient


def check(case, monkeypatch):
    """Run the kernels on one case; an assertion fails where anything is wrong."""
    student, teacher, mask = case.maps()
    factor = 0.25
    with poisoned(monkeypatch) as buffers:
        rows, kept = host.triton_rows(student, teacher, mask, case.temperature, True, factor, case.plan())
    assert len(buffers) >= (4 if case.way == "split" else 2)
    assert (rows.dtype, kept.dtype) == (F32, case.dtype)
    expected, slope = exact(student, teacher, case.temperature, mask)
    near = case.noise is not None
    torch.testing.assert_close(
        rows.double(), factor * expected, rtol=1e-3 if near else 5e-6, atol=0 if near else 1e-7 * case.temperature**2
    )
    left = gradient_scale(case.dtype, case.temperature, factor)[1]
    gradient, slope = kept.double() * left, factor * slope
    assert gradient.isfinite().all()
    rounding = torch.finfo(case.dtype).eps if case.dtype != F32 else 2e-3 if near else 2e-5
    assert (gradient - slope).norm() <= rounding * slope.norm()
    if case.dtype != F32 and not near:  # every entry but the smallest
        torch.testing.assert_close(gradient, slope, rtol=rounding, atol=1e-7 * case.temperature)
    if mask is not None:
        assert gradient.masked_select(~mask[:, None].expand(case.shape)).abs().sum() == 0


LAYOUTS = ["contiguous", "channels_last", "mixed student", "mixed teacher", "transposed", "sliced", "swapped"]
ENDS = ("contiguous", "channels_last")
CASES = [
    *(
        Case(way=way, dtype=dtype, layout=layout)
        for way in PLANS
        for dtype, layout in ((F32, ENDS[0]), (BF16, ENDS[1]))
    ),
    *(Case(dtype=F16, layout=layout) for layout in ENDS),
    *(Case(way=way, masked=True, layout=layout) for way, layout in zip(PLANS, (*ENDS, ENDS[0]), strict=True)),
    *(Case(layout=layout) for layout in LAYOUTS[2:]),
    Case(layout="transposed", masked=True),
    Case(dtype=BF16, teacher=F32, way="split", layout="mixed student"),
    Case(way="streamed", std=40.0, temperature=1.0),
    Case(way="split", noise=1e-2),
    Case(noise=1e-2),
    Case((1, 1, 2), way="split"),
    Case((3, 2, 4, 3, 5), way="streamed"),
    Case((1, 70, 2, 3)),
    Case((1, 33, 5, 4), layout="channels_last", dtype=BF16),
    Case((1, 2, 32, 64)),
]
MORE = {
    *(Case(way=way, dtype=dtype, layout=layout, masked=masked)
      for way in PLANS for dtype in (F32, F16, BF16) for layout in ENDS for masked in (False, True)),
    *(Case(layout=layout, masked=True, way=way) for layout in LAYOUTS[2:] for way in PLANS),
    *(Case(dtype=BF16, teacher=F32, way=way) for way in PLANS),
    *(Case(teacher=F16, way=way) for way in PLANS),
    *(Case(way=way, std=40.0, temperature=1.0) for way in PLANS),
    *(Case(way=way, noise=1e-2) for way in PLANS),
    *(Case(way=way, temperature=0.5) for way in PLANS),
    *(Case(shape, way=way) for shape in ((1, 1, 2), (1, 5, 17), (3, 2, 4, 3, 5), (2, 3, 20, 21)) for way in PLANS),
} - set(CASES)  # fmt: skip


@pytest.fixture(autouse=True)
def _mended(monkeypatch):
    mend_interpreter(monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case, monkeypatch):
    check(case, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("case", sorted(MORE, key=str), ids=str)
def test_agrees_with_float64_in_more_cases(case, monkeypatch):
    check(case, monkeypatch)


WRONG = {
    "reads past the row": ("    there = p < last\n", "    there = p < last + 1\n"),
    "ignores the mask": ("there & (tl.load(mask + image * positions + p, mask=there, other=0) != 0)", "there"),
    "running sum of the wrong maximum": ("total * tl.exp2((largest - top) * k) +", "total +"),
    "parts joined without their maxima": ("total * tl.exp2((largest - top[:, None]) * k)", "total"),
    "last part runs over": ("last = tl.minimum(first + part, positions)", "last = first + part"),
    "gradient not written": ("    if wanted:\n", "    if wanted and block_p == 0:\n"),
    "gradient written past the row": ("values, mask=there,", "values,"),
    "sum of q - p left out": (" + excess.to(tl.float64)", ""),
    "base e for base 2": ("gap, tl.exp2(gap * k)", "gap, tl.exp(gap * k)"),
    "images mixed up": ("student + image * s_n", "student"),
}
SUSPECTS = [
    *(Case(way=way) for way in PLANS),
    *(Case(way=way, masked=True, layout="channels_last") for way in PLANS),
    Case(noise=1e-2),
]


@pytest.mark.parametrize("fault", WRONG)
def test_the_checks_find_a_wrong_kernel(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "kernels", changed_copy(host.kernels, tmp_path, *WRONG[fault]))
    with pytest.raises(AssertionError):
        check_all(SUSPECTS, monkeypatch)


def check_all(cases, monkeypatch):
    for case in cases:
        check(case, monkeypatch)


def triton(student, teacher, **options):
    leaf = student.detach().requires_grad_()
    value = F.channelwise_kl(leaf, teacher, backend="triton", **options)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


@pytest.mark.parametrize(
    ("way", "dtype", "temperature"),
    [
        ("resident", F32, 0.1),
        ("streamed", BF16, 4.0),
        ("split", F32, 4.0),
        ("split", BF16, 0.1),
        ("resident", F16, 0.1),
    ],
    ids=str,
)
def test_finite_for_the_largest_logits(dtype, temperature, way, monkeypatch):
    monkeypatch.setattr(host, "_table", lambda maps: PLANS[way] or Plan("resident", 2, 64, 4))
    big = torch.finfo(dtype).max
    student, teacher = torch.zeros(2, 3, 2, 2, dtype=dtype), torch.zeros(2, 3, 2, 2, dtype=dtype)
    student[..., 0, 0], student[..., 0, 1], teacher[..., 0, 1], teacher[0, 0, 0, 0] = big, -big, big, -big
    for reduction in ("mean", "none"):
        value, gradient = triton(student, teacher, temperature=temperature, reduction=reduction)
        expected = F.channelwise_kl(student.double(), teacher.double(), temperature=temperature, reduction=reduction)
        held = torch.finfo(F32).max / 12
        torch.testing.assert_close(value.double(), expected.clamp(max=held), rtol=1e-6, atol=0)
        scale = temperature / (6 if reduction == "mean" else 1)
        torch.testing.assert_close(
            gradient[1, 2].float(), scale * torch.tensor([[1.0, -1.0], [0.0, 0.0]]), rtol=5e-3, atol=0
        )


@pytest.mark.parametrize("way", PLANS)
def test_logit_gap_of_ten_thousand_and_equal_maps(way, monkeypatch):
    monkeypatch.setattr(host, "_table", lambda maps: PLANS[way] or Plan("resident", 2, 64, 4))
    student, teacher = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    student[0, 0, 0, 0], teacher[0, 0, 3, 3] = 1e4, 1e4
    assert triton(student, teacher, temperature=1.0)[0] == pytest.approx(5000, rel=1e-3)
    same = Case().maps()[1]
    value, gradient = triton(same, same.clone())
    assert value == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("way", PLANS)
@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_as_in_the_definition(bad, who, way, monkeypatch):
    monkeypatch.setattr(host, "_table", lambda maps: PLANS[way] or Plan("resident", 2, 64, 4))
    student, teacher, _ = Case((1, 2, 5, 5)).maps()
    (student if who == "student" else teacher)[0, 1, 2, 2] = bad
    value, gradient = triton(student, teacher, reduction="none")
    expected = F.channelwise_kl(student, teacher, reduction="none", backend="torch")
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0, equal_nan=True)
    assert gradient[0, 0].isfinite().all()


@pytest.mark.parametrize("way", PLANS)
def test_one_position_or_none_counts(way, monkeypatch):
    monkeypatch.setattr(host, "_table", lambda maps: PLANS[way] or Plan("resident", 2, 64, 4))
    student, teacher, _ = Case((2, 3, 1, 1)).maps()
    assert triton(student, teacher)[0] == 0
    student, teacher, _ = Case((2, 3, 4, 4)).maps()
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    for _ in range(2):  # nothing, then one position
        value, gradient = triton(student, teacher, mask=mask)
        assert value == 0
        assert gradient.abs().max() == 0
        mask[1, 2, 3] = True


@pytest.mark.parametrize(
    ("dtype", "layout", "reduction"),
    [
        *((F32, "contiguous", "mean"), (F32, "channels_last", "none"), (F32, "sliced", "sum")),
        *((F16, "contiguous", "mean"), (F16, "channels_last", "sum")),
        *((BF16, "channels_last", "mean"), (BF16, "sliced", "none")),
    ],
    ids=str,
)
def test_backward_scales_what_is_left_to_scale(dtype, layout, reduction):
    student, teacher, _ = Case(dtype=dtype, layout=layout).maps()
    leaf = student.detach().requires_grad_()
    weights = torch.rand(2, 3) if reduction == "none" else torch.tensor(2.5)
    expected = exact(student, teacher, 4.0)[1] * (weights[..., None, None] if reduction == "none" else weights)
    expected = expected / (6 if reduction == "mean" else 1)
    for retain in (True, False):  # into a fresh map, then in place
        value = F.channelwise_kl(leaf, teacher, backend="triton", reduction=reduction)
        (gradient,) = torch.autograd.grad((weights * value).sum(), leaf, retain_graph=retain)
        assert gradient.dtype == dtype
        limit = 2 * torch.finfo(dtype).eps if dtype != F32 else 2e-5
        assert (gradient.double() - expected).norm() <= limit * expected.norm()
    assert gradient.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


def test_a_mean_alone_leaves_its_gradient_untouched():
    student, teacher, _ = Case().maps()
    leaf = student.detach().requires_grad_()
    value = F.channelwise_kl(leaf, teacher, backend="triton")
    kept = value.grad_fn.next_functions[0][0].saved_tensors[0]
    kept.data.fill_(7.0)  # what nothing multiplies stays exactly as it is
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.data_ptr() == kept.data_ptr()
    assert bool((gradient == 7.0).all())


def test_float16_keeps_the_gradient_of_long_rows():
    student, teacher, _ = Case((1, 1, 64, 256), dtype=F16, std=1.0).maps()
    _, gradient = triton(student, teacher, reduction="sum")
    slope = exact(student, teacher, 4.0)[1]
    assert slope.abs().max() < 3e-3  # mostly below float16's normal numbers
    kept = host.triton_rows(student, teacher, None, 4.0, True)[1].double() * gradient_scale(F16, 4.0, 1.0)[1]
    assert (kept - slope).norm() <= torch.finfo(F16).eps * slope.norm()
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=6e-8)


@pytest.mark.parametrize("way", PLANS)
def test_it_repeats_exactly_and_writes_to_no_input(way):
    student, teacher, mask = Case(masked=True).maps()
    before = student.clone(), teacher.clone(), mask.clone()
    first, second, third = (
        host.triton_rows(student, teacher, mask, 4.0, wanted, 1.0, PLANS[way]) for wanted in (True, True, False)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0], third[0])
    assert third[1].numel() == 0
    for one, other in zip(before, (student, teacher, mask), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


FAR = 2**31 + 96
BEYOND = {
    "images": ((3, 2, 4, 8), (FAR // 2, 32, 8, 1)),
    "channels": ((1, 3, 4, 8), (0, FAR // 2, 8, 1)),
    "positions": ((1, 1, 4, 8), (0, 0, 8 * (FAR // 31), FAR // 31)),
}


@pytest.mark.parametrize("way", PLANS)
@pytest.mark.parametrize("far", BEYOND)
def test_offsets_beyond_two_billion(far, way):
    """Images, channels or positions that end 2**31 elements apart, each step within 32 bits; pages that nobody touches
    take no memory."""
    shape, strides = BEYOND[far]
    student = torch.empty(FAR + 128, dtype=F16).as_strided(shape, strides)
    small, teacher, _ = Case(shape, dtype=F16).maps()
    student.copy_(small)
    expected = host.triton_rows(small, teacher, None, 4.0, False, plan=PLANS[way])[0]
    assert torch.equal(host.triton_rows(student, teacher, None, 4.0, False, plan=PLANS[way])[0], expected)


def test_expanded_maps():
    student, teacher, _ = Case((1, 3, 4, 4)).maps()
    value, gradient = triton(student.expand(2, 3, 4, 4), (2 * teacher).expand(2, 3, 4, 4))
    rows, slope = exact(student.expand(2, 3, 4, 4), (2 * teacher).expand(2, 3, 4, 4), 4.0)
    assert value.double() == pytest.approx(rows.mean().item(), rel=5e-6)
    torch.testing.assert_close(gradient.double(), slope / 6, rtol=1e-4, atol=1e-8)


def test_unsupported_types_are_refused():
    from densekd.errors import DtypeError

    double = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    with pytest.raises(DtypeError, match=r"'triton' computes in float32.*got torch.float64.*'torch' or 'auto'"):
        F.channelwise_kl(double, double, backend="triton")


@pytest.mark.long
@pytest.mark.parametrize("dtype", [F32, F16])
def test_compiled_it_is_one_operator_of_the_same_value(dtype):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda s, t: 2.0 * F.channelwise_kl(s, t, backend="triton"), backend=counter, fullgraph=True
    )
    student, teacher, _ = Case(dtype=dtype).maps()
    leaf = student.detach().requires_grad_()
    value = compiled(leaf, teacher)
    (gradient,) = torch.autograd.grad(value, leaf)
    expected, slope = triton(student, teacher)
    torch.testing.assert_close(value.detach(), 2 * expected)
    torch.testing.assert_close(gradient, 2 * slope)
    calls = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert counter.frame_count == 1
    assert sum("channelwise_kl" in call for call in calls) == 1


@pytest.mark.long
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_operator_passes_the_checks_of_torch(dtype):
    from densekd.functional.operator import rows_operator

    student, teacher, mask = Case((2, 2, 3, 3), dtype=dtype, masked=True).maps()
    for m in (None, mask):
        clean = [x.nan_to_num(0.0, 0.0, 0.0) for x in (student, teacher)]
        arguments = (clean[0].requires_grad_(), clean[1], m, 4.0, "triton", True, 0.5)
        torch.library.opcheck(
            rows_operator, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
        )


def test_a_leaf_gets_the_kept_gradient_itself():
    """No copy on the way into `.grad`: one map of memory in all."""
    student, teacher, _ = Case().maps()
    leaf = student.detach().contiguous().clone().requires_grad_()
    value = F.channelwise_kl(leaf, teacher, backend="triton")
    kept = value.grad_fn.next_functions[0][0].saved_tensors[0].data_ptr()
    value.backward()
    assert leaf.grad.data_ptr() == kept


@pytest.mark.long
def test_every_way_that_is_timed_gives_the_same(monkeypatch):
    from densekd.bench.gpu_ways import run, ways

    outcome = run(torch.device("cpu"), tiny=True)
    assert {case.variant for case in outcome.cases} > {"table", "torch"}
    student, teacher, _ = Case((1, 2, 30, 70)).maps()
    for last in (False, True):
        expected, slope = exact(student, teacher, 4.0)
        for plan in ways((1, 2, 30, 70), 4, last, 132).values():
            rows, gradient = host.triton_rows(student, teacher, None, 4.0, True, 1.0, plan)
            torch.testing.assert_close(rows.double(), expected, rtol=5e-6, atol=0)
            torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-8)
