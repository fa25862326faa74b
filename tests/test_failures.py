"""Errors of other libraries and of the user's own code, in words for the user; defects stay defects."""

from __future__ import annotations

import errno
import gc
import runpy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from densekd.cli.guard import guarded
from densekd.errors import DataError, ModelError, ResourceError
from densekd.failures import explained, told
from densekd.models import ModelSpec, build_model
from densekd.models.measure import measure

NETWORK = """
import sys

import torch
from helper import shift
from torch import nn


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        if self.how == "raises":
            raise KeyError("aux")
        if self.how == "torch":
            return self.body(x[:, :2])
        if self.how == "helper":
            return shift(x)
        if self.how == "exits":
            sys.exit(0)
        if self.how == "norm":
            return self.norm(self.body(x).mean((2, 3), keepdim=True))
        return self.body(x)


def build(num_classes, how=""):
    return Net(how)
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], nn.Module]:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "helper.py").write_text("def shift(x):\n    return x.no_such_thing()\n")

    def build(how: str) -> nn.Module:
        spec = ModelSpec(model=f"{tmp_path}/net.py:build", options={"how": how})
        return build_model(spec, 2, notices=[])

    return build


def raised(error: BaseException) -> BaseException:
    """The error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("how", "line", "words"),
    [
        ("raises", "net.py:18", "KeyError: 'aux'"),
        ("torch", "net.py:20", "RuntimeError: Given groups=1, weight of size"),
        ("helper", "helper.py:2", "AttributeError: 'Tensor' object has no attribute 'no_such_thing'"),
        ("exits", "net.py:24", r"the program is ended there, SystemExit\(0\)"),
    ],
)
def test_own_code_is_named_by_file_and_line(own: Callable[[str], nn.Module], how: str, line: str, words: str) -> None:
    network = own(how)
    with pytest.raises(ModelError, match=rf"/{line}: {words}.* \(in your own code\)"), told():
        network(torch.zeros(1, 3, 4, 4))


def test_what_densekd_raises_inside_of_own_code_is_a_defect(own: Callable[[str], nn.Module], tmp_path: Path) -> None:
    network = own("")
    # A function with a file of densekd's own, as that of a hook.
    place = Path(str(explained.__code__.co_filename)).with_name("hook.py")
    names: dict[str, Callable[..., None]] = {}
    exec(compile("def hook(*_):\n    return {}['defect']\n", str(place), "exec"), names)
    network.body.register_forward_hook(names["hook"])
    with pytest.raises(KeyError, match="defect"), told():
        network(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), ValueError("x"), AssertionError(), SystemExit(2)])
def test_a_defect_is_not_explained_away(error: BaseException) -> None:
    assert explained(raised(error)) is None
    with pytest.raises(type(error)) as caught, told():
        raise error
    assert caught.value is error


def test_what_the_garbage_collector_imports_meanwhile_changes_nothing() -> None:
    before, threshold = {*sys.modules}, gc.get_threshold()

    def importing(_phase: str, _found: object) -> None:
        sys.modules[f"meanwhile{len(sys.modules)}"] = sys

    gc.callbacks.append(importing)
    gc.set_threshold(1)
    try:
        assert explained(raised(KeyError("x"))) is None
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(importing)
        for name in {*sys.modules} - before:
            del sys.modules[name]


def test_an_error_of_densekd_is_itself() -> None:
    error = DataError("a.png: cannot be read")
    with pytest.raises(DataError) as caught, told():
        raise error
    assert caught.value is error


class OutOfMemoryError(RuntimeError):
    """As torch's: CUDA's has this name."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_no_memory_names_the_keys_that_need_less(error: Exception) -> None:
    with pytest.raises(ResourceError, match=r"out of memory \(.*lower train\.batch_size .*train\.accumulate"), told():
        raise error


def test_torch_itself_runs_out_of_memory_in_a_module_that_is_named() -> None:
    class Huge(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_empty(2**46)

    network = nn.Sequential(nn.Identity(), nn.Sequential(Huge()))
    with pytest.raises(ResourceError, match=r"out of memory in Sequential\.1\.0 \(Huge\) \(RuntimeError: "), told():
        network(torch.zeros(1))


def test_measuring_does_not_blame_the_network_for_the_memory() -> None:
    class Huge(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_empty(2**46)

    with pytest.raises(RuntimeError, match="allocate") as caught:
        measure(Huge(), torch.zeros(1, 3, 4, 4))
    assert not isinstance(caught.value, ModelError)


def test_measuring_names_the_line_of_own_code(own: Callable[[str], nn.Module]) -> None:
    with pytest.raises(
        ModelError, match=r"fails in eval mode on images \(1, 3, 4, 4\): .*/net\.py:18: KeyError: 'aux'"
    ):
        measure(own("raises"), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "ended by signal Killed; mostly because memory"),
        ("DataLoader worker (pid(s) 1, 2) exited unexpectedly", "ended unexpectedly; .*lower runtime.workers"),
        (
            "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            r"no room in shared memory \(/dev/shm\).*--shm-size.*runtime\.workers",
        ),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n  RuntimeError: unable to "
            "write to file </torch_12_34>: No space left on device (28)",
            r"no room in shared memory",
        ),
    ],
)
def test_a_lost_process_is_told_with_its_likely_cause(text: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words), told():
        raise RuntimeError(text)


def test_one_value_per_channel_names_the_layer_and_the_key(own: Callable[[str], nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    words = r"normalisation in {} needs several .* given \[1, {}, 1, 1\]: .*train\.batch_size=2"
    with pytest.raises(ModelError, match=words.format(r"Sequential\.2 \(BatchNorm2d\)", 4)), told():
        network(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ModelError, match=words.format(r"Net\.norm \(BatchNorm2d\)", 2)), told():
        own("norm").train()(torch.zeros(1, 3, 5, 5))


def test_the_command_line_tells_them_as_mistakes(own: Callable[[str], nn.Module], capsys, monkeypatch) -> None:
    monkeypatch.delenv("DENSEKD_DEBUG", raising=False)

    def ended(work: Callable[[], object]) -> tuple[object, str]:
        with pytest.raises(SystemExit) as stop:
            guarded(work)()
        return stop.value.code, capsys.readouterr().err

    for how in ("raises", "exits"):
        network = own(how)
        code, told_ = ended(lambda network=network: network(torch.zeros(1, 3, 4, 4)))
        assert code == 2
        assert told_.startswith("error: /")
        assert "net.py:" in told_
        assert told_.count("\n") == 1

    def out() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def broken() -> None:
        raise KeyError("oops")

    assert ended(out)[0] == 2
    code, told_ = ended(broken)
    assert code == 1
    assert "internal error: KeyError: 'oops'" in told_


def test_a_script_of_the_users_is_not_its_network(tmp_path: Path) -> None:
    # The script stands beside the network's file, but the frames above the block are not looked at.
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "helper.py").write_text("shift = None\n")
    script = textwrap.dedent(
        f"""
        from densekd.failures import told
        from densekd.models import ModelSpec, build_model

        build_model(ModelSpec(model="{tmp_path}/net.py:build"), 2, notices=[])

        def work(run):
            try:
                run()
            except KeyError as error:
                return error
        """
    )
    (tmp_path / "script.py").write_text(script)
    work = runpy.run_path(str(tmp_path / "script.py"))["work"]

    def run() -> None:
        with told():
            raise KeyError("defect")

    assert isinstance(work(run), KeyError)
