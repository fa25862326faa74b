"""The Triton kernels of upsampled_cross_entropy and pixelwise_kl in four tiers; see triton_tiers.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from densekd import functional as F
from densekd.errors import ArgumentError, DtypeError, SecondDerivativeError
from densekd.functional import backends, upsampled_cross_entropy
from densekd.functional.backends import choose_backend
from densekd.kernels import loading
from triton_tiers import needs_compiler, needs_gpu, needs_triton, run_interpreted

LOGITS, LABELS = torch.zeros(2, 3, 4, 8), torch.zeros(2, 8, 16, dtype=torch.int64)


@pytest.fixture
def no_answers(monkeypatch):
    """Nothing known about this machine yet."""
    loading._obstacle.cache_clear()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    loading._obstacle.cache_clear()


# --- tier 1: without Triton, or without a device -----------------------------------------------------------------


def test_on_the_cpu_triton_is_refused_with_the_reason(no_answers, monkeypatch):
    for call in (
        lambda: F.upsampled_cross_entropy(LOGITS, LABELS, backend="triton"),
        lambda: F.pixelwise_kl(LOGITS, LOGITS, backend="triton"),
    ):
        with pytest.raises(ArgumentError, match=r"cannot run here: .*CUDA devices.*on cpu; move.*'auto' or 'torch'"):
            call()
        loading._obstacle.cache_clear()
        with monkeypatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setattr(loading.importlib.util, "find_spec", lambda name: None)
            with pytest.raises(ArgumentError, match=r"cannot run here: it is not installed \(pip install triton\)"):
                call()
        loading._obstacle.cache_clear()
    with pytest.raises(ArgumentError, match=r"backend: expected one of .*; did you mean 'blocked'"):
        F.pixelwise_kl(LOGITS, LOGITS, backend="block")


def fake(dtype=torch.float32, elements=10**6, device="cuda"):
    return SimpleNamespace(dtype=dtype, device=torch.device(device), numel=lambda: elements)


def test_auto_takes_triton_where_it_can(monkeypatch):
    ready = {"why": None}
    monkeypatch.setattr(backends, "triton_obstacle", lambda *a: ready["why"])
    single = upsampled_cross_entropy.__globals__["_choose"]
    assert choose_backend("auto", fake(), fake(torch.bfloat16)) == "triton"
    assert single("auto", fake(elements=10))
    assert choose_backend("auto", fake(elements=100), fake(elements=100)) == "torch"
    for dtype, device in ((torch.float64, "cuda"), (torch.float32, "mps")):
        assert choose_backend("auto", fake(dtype, device=device), fake(device=device)) == "torch"
        assert not single("auto", fake(dtype, device=device))
    assert choose_backend("auto", fake(device="cpu"), fake(device="cpu")) == "blocked"
    for call in (
        lambda: choose_backend("triton", fake(), fake(torch.float64)),
        lambda: single("triton", fake(torch.float64)),
    ):
        with pytest.raises(DtypeError, match=r"computes in float32.*float64; use 'torch' or 'auto'"):
            call()
    with pytest.raises(ArgumentError, match="'blocked' runs on the CPU alone, the maps are on cuda"):
        choose_backend("blocked", fake(), fake())
    ready["why"] = "it is not installed"
    assert choose_backend("auto", fake(), fake()) == "torch"
    assert not single("auto", fake())


# --- on the CPU: the blocked pixelwise_kl ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_blocks_agree_with_the_definition(dtype, layout, monkeypatch):
    from densekd.kernels import pixelwise

    monkeypatch.setattr(pixelwise, "BLOCK", 40)  # 8 positions of 5 channels
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4.0 * torch.randn(2, 5, 3, 7, generator=generator) for _ in range(2))
    if layout == "channels_last":
        student = student.to(memory_format=torch.channels_last)
    if layout == "transposed":
        student = student.transpose(2, 3).contiguous().transpose(2, 3)
    mask = torch.rand(2, 3, 7, generator=generator) < 0.6
    student, teacher = student.masked_fill(~mask[:, None], torch.nan).to(dtype).requires_grad_(), teacher.to(dtype)
    weights = torch.rand(2, 3, 7, generator=generator, dtype=torch.float64)
    found = []
    for backend in ("torch", "blocked"):
        rows = F.pixelwise_kl(student, teacher, mask=mask, temperature=2.0, reduction="none", backend=backend)
        (gradient,) = torch.autograd.grad((weights.to(rows) * rows).sum(), student)
        found.append((rows.detach(), gradient))
    tight = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5}[dtype]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=tight, atol=tight)
    slope = 2e-2 if dtype == torch.bfloat16 else tight
    torch.testing.assert_close(found[1][1], found[0][1], rtol=slope, atol=slope)


def test_blocks_have_no_second_derivative_and_the_definition_has():
    student = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.zeros(1, 3, 2, 2)
    for backend in ("blocked", "torch"):
        (gradient,) = torch.autograd.grad(F.pixelwise_kl(student, teacher, backend=backend), student, create_graph=True)
        if backend == "torch":
            torch.autograd.grad(gradient.square().sum(), student)
            continue
        with pytest.raises(SecondDerivativeError, match="pixelwise_kl has no second derivative"):
            torch.autograd.grad(gradient.sum(), student)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_kept_has_its_own_type_and_layout_as_a_compiled_graph_expects(dtype, layout):
    gradient = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=layout)
    upstream = torch.tensor(0.5).expand(2, 1, 4, 5)
    found, made = (
        torch.ops.densekd.scaled_gradient(gradient.to(device), upstream.to(device), "loss")
        for device in ("cpu", "meta")
    )
    assert (found.dtype, found.stride()) == (made.dtype, made.stride()) == (dtype, gradient.stride())
    assert torch.equal(found, gradient * 0.5)


@pytest.mark.slow
def test_compiled_it_is_one_node():
    seen = []

    def backend(graph, inputs):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    for layout in (torch.contiguous_format, torch.channels_last):
        student, teacher = (torch.randn(2, 3, 4, 5).to(memory_format=layout) for _ in range(2))
        student.requires_grad_()
        value = torch.compile(F.pixelwise_kl, backend=backend, fullgraph=True)(student, teacher)
        assert sum("densekd.pixelwise_kl" in target for target in seen[-1]) == 1
        (got,), (expected,) = (torch.autograd.grad(v, student) for v in (value, F.pixelwise_kl(student, teacher)))
        assert torch.equal(got, expected)
        traced = torch.compile(F.pixelwise_kl, backend="aot_eager", fullgraph=True)(student, teacher)
        (got,) = torch.autograd.grad(traced, student)
        torch.testing.assert_close(got, expected)


# --- tier 2: interpreted -----------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.slow
def test_interpreted_kernels():
    assert "passed" in run_interpreted("interpreted_taskloss.py", "-m", "not long")


@needs_triton
@pytest.mark.long
@pytest.mark.timeout(900)
def test_interpreted_kernels_in_more_cases():
    assert "passed" in run_interpreted("interpreted_taskloss.py", "-m", "long")


# --- tier 3: compiled for devices that are not here --------------------------------------------------------------


def all_cases():
    from densekd.kernels.triton_task_cases import pixelwise_cases, upsampled_cases

    return [*upsampled_cases(), *pixelwise_cases()]


@needs_compiler
@pytest.mark.slow
def test_kernels_compile_without_spills(monkeypatch, tmp_path):
    from densekd.kernels.aot import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = [case for case in all_cases() if case.dtype == torch.bfloat16 and not case.masked and case.shape[1] != 11]
    assert {case.way for case in found} == {"pixels", "slopes", "whole", "streamed"}
    for case in found:
        made = compiled(case.launch, 90)
        assert made.spills == 0, (case[:-1], made)


@needs_compiler
@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_every_target(monkeypatch, tmp_path):
    from densekd.kernels.aot import TARGETS, compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for case in all_cases():
        for target in TARGETS:
            made = compiled(case.launch, target)
            print(*case[:-1], made)
            assert made.spills == 0, (case[:-1], made)


# --- tier 4: a real GPU ------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_up_sampling_on_the_gpu(dtype, layout, align_corners, smoothing):
    generator = torch.Generator().manual_seed(0)
    for shape, full in (((2, 19, 64, 128), (512, 1024)), ((3, 150, 33, 47), (129, 200)), ((1, 2, 5, 5), (5, 5))):
        logits = (4.0 * torch.randn(shape, generator=generator)).to("cuda", dtype).contiguous(memory_format=layout)
        labels = torch.randint(0, shape[1], (shape[0], *full), generator=generator)
        labels[:, : full[0] // 3] = 255
        leaf, labels = logits.requires_grad_(), labels.cuda()
        weights = torch.rand(shape[1], generator=generator).cuda() + 0.1
        options = {"align_corners": align_corners, "class_weights": weights, "label_smoothing": smoothing}
        value = F.upsampled_cross_entropy(leaf, labels, backend="triton", **options)
        (gradient,) = torch.autograd.grad(value, leaf)
        double = leaf.detach().double().requires_grad_()
        expected = F.upsampled_cross_entropy(double, labels, backend="torch", **options)
        (slope,) = torch.autograd.grad(expected, double)
        assert value.item() == pytest.approx(expected.item(), rel=5e-6)
        limit = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert (gradient.double() - slope).norm() <= limit * slope.norm()
        (again,) = torch.autograd.grad(F.upsampled_cross_entropy(leaf, labels, backend="triton", **options), leaf)
        assert torch.equal(again, gradient)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("masked", [False, True])
def test_pixels_on_the_gpu(dtype, layout, masked):
    for shape in ((2, 19, 64, 128), (4, 150, 128, 128), (2, 1000, 9, 11)):
        student, teacher = (
            (4.0 * torch.randn(shape)).to("cuda", dtype).contiguous(memory_format=layout) for _ in range(2)
        )
        mask = torch.rand(shape[0], *shape[2:], device="cuda") < 0.7 if masked else None
        leaf, double = student.requires_grad_(), student.detach().double().requires_grad_()
        value = F.pixelwise_kl(leaf, teacher, mask=mask, backend="triton")
        expected = F.pixelwise_kl(double, teacher.double(), mask=mask, backend="torch")
        (gradient,), (slope,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, double)
        assert value.item() == pytest.approx(expected.item(), rel=5e-6)
        limit = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert (gradient.double() - slope).norm() <= limit * slope.norm()


@needs_gpu
@pytest.mark.slow
def test_on_the_gpu_the_host_never_waits():
    logits = torch.randn(2, 19, 64, 128, device="cuda", requires_grad=True)
    teacher, labels = torch.randn_like(logits), torch.zeros(2, 512, 1024, dtype=torch.int64, device="cuda")

    def step():
        (F.upsampled_cross_entropy(logits, labels, backend="triton") + F.pixelwise_kl(logits, teacher)).backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
