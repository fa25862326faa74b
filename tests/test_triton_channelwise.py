"""channelwise_kl's Triton kernels in four tiers; see triton_tiers.py."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd import functional as F
from densekd.errors import ArgumentError, DtypeError
from densekd.functional import backends
from densekd.kernels import loading, triton_obstacle
from densekd.kernels.channelwise_plan import (
    CACHED,
    PROGRAMS,
    RESIDENT,
    Plan,
    gradient_scale,
    make_plan,
    power_of_two,
    worth_it,
)
from densekd.kernels.strides import as_strided, position_order, strided
from triton_tiers import needs_compiler, needs_gpu, needs_triton, run_interpreted

MAP = torch.zeros(2, 3, 4, 8)


@pytest.fixture
def no_answers(monkeypatch):
    """Nothing known about this machine yet, and a compiler on it."""
    loading._obstacle.cache_clear()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    loading._obstacle.cache_clear()


# --- tier 1: without Triton, or without a device -----------------------------------------------------------------


def test_on_the_cpu_triton_is_refused_with_the_reason(no_answers):
    with pytest.raises(ArgumentError, match=r"cannot run here: .*CUDA devices.*on cpu; move.*'auto' or 'torch'"):
        F.channelwise_kl(MAP, MAP, backend="triton")


def test_triton_that_is_not_installed_is_an_error_for_triton_alone(no_answers, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"cannot run here: it is not installed \(pip install triton\)"):
        F.channelwise_kl(MAP, MAP, backend="triton")
    assert F.channelwise_kl(MAP, MAP) == 0


def test_triton_that_does_not_load_is_named(no_answers, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(loading.importlib, "import_module", lambda name: 1 / 0)
    with pytest.raises(ArgumentError, match=r"does not load \(ZeroDivisionError: division by zero\)"):
        F.channelwise_kl(MAP, MAP, backend="triton")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capability": (7, 5)}, "compute capability 8.0 or newer, this one has 7.5"),
        ({"hip": "6.0"}, "built for AMD's"),
        ({"compiler": None}, "C compiler and finds none"),
        ({}, None),
    ],
    ids=str,
)
def test_what_a_device_lacks(change, words, no_answers, monkeypatch):
    monkeypatch.setattr(loading.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: change.get("capability", (9, 0)))
    monkeypatch.setattr(torch.version, "hip", change.get("hip"))
    monkeypatch.delenv("CC")
    monkeypatch.setattr(loading.shutil, "which", lambda name: change.get("compiler", "/usr/bin/cc"))
    found = triton_obstacle("cuda", 0)
    assert found is None if words is None else words in found


def fake(dtype=torch.float32, elements=10**6, device="cuda"):
    return SimpleNamespace(dtype=dtype, device=torch.device(device), numel=lambda: elements)


def test_auto_takes_triton_where_it_can_and_pays(monkeypatch):
    ready = {"why": None}
    monkeypatch.setattr(backends, "triton_obstacle", lambda *a: ready["why"])
    assert backends.choose_backend("auto", fake(), fake()) == "triton"
    assert backends.choose_backend("auto", fake(torch.bfloat16), fake(torch.float16)) == "triton"
    assert backends.choose_backend("auto", fake(), fake(torch.float64)) == "torch"
    assert backends.choose_backend("auto", fake(elements=100), fake(elements=100)) == "torch"
    assert backends.choose_backend("triton", fake(elements=100), fake(elements=100)) == "triton"
    assert backends.choose_backend("auto", fake(device="mps"), fake(device="mps")) == "torch"
    assert backends.choose_backend("auto", fake(device="cpu"), fake(device="cpu")) == "blocked"
    with pytest.raises(DtypeError, match="float64"):
        backends.choose_backend("triton", fake(), fake(torch.float64))
    ready["why"] = "it is not installed"
    with pytest.warns(UserWarning, match="in plain torch, because Triton cannot run here: it is not installed"):
        assert backends.choose_backend("auto", fake(), fake()) == "torch"
    assert worth_it(65_536)
    assert not worth_it(65_535)


def test_how_the_gradient_is_kept():
    assert gradient_scale(torch.float32, 4.0, 0.5) == (2.0, 1.0)
    assert gradient_scale(torch.bfloat16, 4.0, 0.5) == (2.0, 1.0)
    kept, left = gradient_scale(torch.float16, 4.0, 0.5)
    assert kept * left == 2.0
    assert kept < torch.finfo(torch.float16).max  # of q - p = 1
    assert kept / 2**21 > torch.finfo(torch.float16).tiny  # of an even row of two million positions


# --- how rows are spread -----------------------------------------------------------------------------------------

SIZES = st.tuples(
    st.integers(1, 64), st.integers(1, 2048), st.one_of(st.integers(1, 40_000), st.integers(1, 2**21 + 9))
)


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, itemsize=st.sampled_from([2, 4]), flat=st.booleans(), processors=st.sampled_from([16, 108, 132]))
def test_every_position_of_every_row_is_in_one_part(sizes, itemsize, flat, processors):
    images, channels, positions = sizes
    plan = make_plan(*sizes, itemsize=itemsize, rows_lie_flat=flat, multiprocessors=processors)
    assert plan.channels == power_of_two(plan.channels) <= power_of_two(channels)
    assert plan.positions == power_of_two(plan.positions) >= 16
    assert plan.warps in (4, 8, 16, 32)
    assert plan.channels * plan.positions <= max(RESIDENT, 16 * plan.channels)
    if plan.way == "resident":
        assert plan.positions >= positions
    elif plan.way == "streamed":
        assert 2 * itemsize * plan.channels * positions <= CACHED
    else:
        assert plan.part % plan.positions == 0
        assert (plan.parts - 1) * plan.part < positions <= plan.parts * plan.part
        programs = images * -(-channels // plan.channels) * plan.parts
        short = plan.part <= 8 * plan.positions or plan.parts * plan.channels > 2048 or plan.parts > 1000
        assert short or programs >= PROGRAMS * processors // 2


def test_few_long_rows_fill_an_h200():
    plan = make_plan(2, 19, 512 * 1024, itemsize=4, rows_lie_flat=True, multiprocessors=132)
    assert plan.way == "split"
    assert 38 * plan.parts >= 7 * 132
    assert make_plan(8, 512, 64 * 64, itemsize=2, rows_lie_flat=True, multiprocessors=132).way == "resident"
    halves, wholes = (
        make_plan(16, 150, 128 * 128, itemsize=itemsize, rows_lie_flat=True, multiprocessors=132) for itemsize in (2, 4)
    )
    assert halves.way == wholes.way == "streamed"
    assert (halves.warps, wholes.warps) == (16, 32)  # two programs of a multiprocessor share its cache, or one has it
    assert make_plan(1, 1, 2**21, itemsize=4, rows_lie_flat=True, multiprocessors=132).parts >= 128


@pytest.mark.parametrize(
    ("made", "strides"),
    [
        (torch.zeros(2, 3, 4, 5), (60, 20, 1)),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (60, 1, 3)),
        (torch.zeros(2, 3, 5, 4).transpose(2, 3), (60, 20, 1)),
        (torch.zeros(2, 3, 4, 1), (12, 4, 1)),
        (torch.zeros(2, 3, 4, 10)[..., ::2], (120, 40, 2)),
        (torch.zeros(2, 3, 4, 10)[..., :5], None),
        (torch.zeros(4, 3, 2, 5).transpose(0, 2), None),
        (torch.zeros(2, 3, 6), (18, 6, 1)),
        (torch.zeros(2, 6, 3).transpose(1, 2), (18, 1, 3)),
        (torch.zeros(2, 3, 1, 1), (3, 1, 1)),
    ],
    ids=str,
)
def test_three_strides(made, strides):
    turned = made.permute(position_order(made))
    found = strided(turned)
    assert (None if found is None else found[1:]) == strides
    copied = as_strided(turned)
    flat = copied.tensor.as_strided((*made.shape[:2], made[0, 0].numel()), copied[1:])
    assert torch.equal(flat, turned.flatten(2))


# --- tier 2: interpreted -----------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.slow
def test_interpreted_kernels():
    assert "passed" in run_interpreted("interpreted_channelwise.py", "-m", "not long")


@needs_triton
@pytest.mark.long
def test_interpreted_kernels_in_more_cases():
    assert "passed" in run_interpreted("interpreted_channelwise.py", "-m", "long")


@pytest.mark.slow
def test_triton_is_not_loaded_on_the_cpu():
    script = (
        "import sys, torch, densekd.functional as F, densekd.losses, densekd.distiller\n"
        "maps = torch.randn(2, 3, 4, 5, requires_grad=True)\n"
        "F.channelwise_kl(maps, torch.randn(2, 3, 4, 5)).backward()\n"
        "try:\n    F.channelwise_kl(maps, maps, backend='triton')\nexcept Exception as error:\n    print(error)\n"
        "print('triton' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    error, loaded = done.stdout.splitlines()
    assert "cannot run here" in error
    assert loaded == "False"


# --- tier 3: compiled for devices that are not here --------------------------------------------------------------


def compiled_cases(keep):
    from densekd.kernels.triton_channelwise_cases import cases

    return [case for case in cases() if keep(case)]


@needs_compiler
@pytest.mark.slow
def test_kernels_compile_without_spills(monkeypatch, tmp_path):
    from densekd.kernels.aot import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    short = ("contiguous", "resident")
    found = compiled_cases(lambda case: case.dtype == torch.bfloat16 and not case.masked)
    found = [case for case in found if case.layout in short or (case.way in short and case.layout != "mixed")]
    assert {case.way for case in found} == {"resident", "streamed", "split", "backward"}
    for case in found:
        made = compiled(case.launch, 90)
        assert made.spills == 0, (case[:-1], made)
        assert made.resident_programs >= 1
        if case.way != "split":
            assert made.widest_load == 16, (case[:-1], made)


@needs_compiler
@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_every_target(monkeypatch, tmp_path):
    from densekd.kernels.aot import TARGETS, compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for case in compiled_cases(lambda case: True):
        for target in TARGETS:
            made = compiled(case.launch, target)
            print(*case[:-1], made)
            assert made.spills == 0, (case[:-1], made)


@needs_compiler
@pytest.mark.long
def test_sizes_of_one_compile(monkeypatch, tmp_path):
    """Triton makes constants of sizes and strides that are 1, which the interpreter does not."""
    from densekd.kernels.aot import compiled
    from densekd.kernels.triton_channelwise_host import planned, prepared, scaling

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for shape in ((1, 1, 1, 1), (1, 1, 65, 65), (2, 1, 100, 100), (3, 2, 5)):
        maps = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        mask = torch.empty((shape[0], *shape[2:]), dtype=torch.bool, device="meta")
        made = prepared(maps, maps, mask, True)
        for plan in (None, Plan("streamed", 1, 2048, 8), Plan("split", 1, 2048, 8, 1, 12288)):
            for launch in planned(made, 4.0, 1.0, plan):
                assert compiled(launch, 90).spills == 0
        compiled(scaling(made.gradient, torch.empty((), device="meta").expand(shape[:2]), 0.5), 90)


# --- tier 4: a real GPU ------------------------------------------------------------------------------------------


def on_gpu(shape, dtype, layout="contiguous", std=4.0):
    generator = torch.Generator().manual_seed(0)
    maps = [(std * torch.randn(shape, generator=generator)).to("cuda", dtype) for _ in range(2)]
    last = layout == "channels_last"
    return [x.to(memory_format=torch.channels_last) if last else x for x in maps]


GPU_SHAPES = [(2, 19, 512, 1024), (4, 150, 128, 128), (8, 512, 16, 16), (4, 64, 192, 128), (1, 3, 65, 65), (2, 5, 3, 3)]


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("masked", [False, True])
def test_on_the_gpu_against_float64(shape, dtype, layout, masked):
    student, teacher = on_gpu(shape, dtype, layout)
    mask = torch.rand(shape[0], *shape[2:], device="cuda") < 0.7 if masked else None
    leaf = student.detach().requires_grad_()
    value = F.channelwise_kl(leaf, teacher, mask=mask, backend="triton")
    (gradient,) = torch.autograd.grad(3.0 * value, leaf)
    double = student.double().requires_grad_()
    expected = F.channelwise_kl(double, teacher.double(), mask=mask, backend="torch")
    (slope,) = torch.autograd.grad(3.0 * expected, double)
    assert value.item() == pytest.approx(expected.item(), rel=5e-6)
    limit = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert (gradient.double() - slope).norm() <= limit * slope.norm()
    assert gradient.stride() == student.stride()


@needs_gpu
@pytest.mark.slow
def test_on_the_gpu_the_host_never_waits_and_results_repeat():
    student, teacher = on_gpu((2, 19, 512, 1024), torch.float32)
    F.channelwise_kl(student.requires_grad_(), teacher, backend="triton").backward()  # compiles
    first, student.grad = student.grad, None
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.channelwise_kl(student, teacher, backend="triton").backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, student.grad)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_gpu_one_more_map_of_memory(dtype):
    student, teacher = on_gpu((8, 512, 128, 128), dtype)
    student.requires_grad_()
    size = student.numel() * student.element_size()
    for _ in range(2):
        student.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        F.channelwise_kl(student, teacher, backend="triton").backward()
        extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 1.1 * size


@needs_gpu
@pytest.mark.slow
def test_on_the_gpu_a_map_of_more_than_two_billion_elements():
    shape = (3, 2, 32768, 16384)
    student = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    teacher = torch.zeros_like(student)
    student[2, 1, -1, -1] = 3.0
    rows = F.channelwise_kl(student, teacher, reduction="none", temperature=1.0, backend="triton")
    assert rows[:2].abs().max() == 0
    assert rows[2, 0] == 0
    assert rows[2, 1] > 0


@needs_gpu
@pytest.mark.slow
def test_on_the_gpu_auto_takes_triton_and_finite_stays_finite():
    student, teacher = on_gpu((2, 19, 128, 128), torch.float32, std=1e30)
    value = F.channelwise_kl(student.requires_grad_(), teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert torch.equal(value, F.channelwise_kl(student, teacher, backend="triton"))
    same = student.detach().requires_grad_()
    F.channelwise_kl(same, same.detach().clone(), backend="triton").backward()
    assert same.grad.abs().max() == 0


@needs_gpu
@pytest.mark.slow
def test_on_the_gpu_in_a_compiled_function_and_on_another_stream():
    student, teacher = on_gpu((2, 19, 64, 64), torch.bfloat16)
    compiled = torch.compile(lambda s, t: 2.0 * F.channelwise_kl(s, t), fullgraph=True)
    leaf = student.requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(leaf, teacher), leaf)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        (other,) = torch.autograd.grad(2.0 * F.channelwise_kl(leaf, teacher), leaf)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(gradient, other)
