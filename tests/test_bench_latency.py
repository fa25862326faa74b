"""`densekd bench latency`: turns, memory, what is compared before it is timed, the record."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.bench import latency
from densekd.bench.latency import Turns, busy, rows, turns
from densekd.bench.latency_contestants import SIZE, Contestant, check_given, graph_of, size_of
from densekd.bench.latency_right import off_by
from densekd.cli.app import call
from densekd.errors import ArgumentError, DensekdError, ExportError, RunError
from densekd.export import export_run
from densekd.records import BenchRecord, dump
from densekd.runs import distill, train
from runkit import distillation, make_place, recipe
from shipkit import File


def contestant(network: Callable[[Tensor], Tensor], **options: Any) -> Contestant:
    plain = {"label": "run", "variant": "student onnx", "how": "by hand", "file_bytes": 2_000_000}
    return Contestant(**{**plain, "call": network, "size": (4, 6), "device": torch.device("cpu"), **options})


def test_all_take_turns_and_the_first_call_of_a_turn_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    called: list[str] = []
    costs = {"slow": 1.0, "fast": 0.1}

    def pay(name: str) -> Callable[[], None]:
        def run() -> None:
            nonlocal clock
            clock += costs[name]
            called.append(name)

        return run

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock)
    ticks: list[int] = []
    found = turns({name: pay(name) for name in costs}, seconds=8.1, rounds=2, tick=lambda: ticks.append(len(called)))
    # 8.1 seconds over two rounds and two contestants: two counted calls of the slow one a turn, twenty of the fast one.
    assert called[:4] == ["slow", "slow", "fast", "fast"]
    assert called[4:28] == ["slow"] * 3 + ["fast"] * 21
    assert called[28:] == ["fast"] * 21 + ["slow"] * 3
    assert found["slow"].wall == pytest.approx([1.0] * 4)
    assert found["fast"].wall == pytest.approx([0.1] * 40)
    assert ticks == [4, 28, 52]


def test_a_turn_has_a_call_and_no_more_than_forty() -> None:
    found = turns({"one": lambda: None}, seconds=1e-9, rounds=3, tick=lambda: None)
    assert len(found["one"].wall) == len(found["one"].cpu) == 3
    assert len(turns({"one": lambda: None}, seconds=100.0, rounds=1, tick=lambda: None)["one"].wall) == 40


MEMORY = """
import torch
from densekd import host_memory
from densekd.bench.latency_memory import resident_growth

host_memory.ask(host_memory.DEFAULTS)  # as the command does: what is freed stays with the process
torch.ones(1)
held = []
first = resident_growth(lambda: held.append(torch.ones(12 << 20)))
held.clear()
print(first, resident_growth(lambda: torch.ones(10 << 20).sum()), resident_growth(lambda: None))
"""


@pytest.mark.slow
def test_memory_is_that_of_a_first_call_whatever_lies_free() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    if "None" in done.stdout:
        pytest.skip("this system does not tell how much memory is resident")
    first, again, none = (int(number) / (1 << 20) for number in done.stdout.split())
    assert 45 < first < 60
    assert 38 < again < 50  # not hidden by what the first call left free
    assert none < 2


@pytest.mark.parametrize(
    ("given", "formats", "error", "words"),
    [
        ([], ["onnx"], ArgumentError, "expected a run folder, an exported file or the name of a model"),
        (["smp:FPN", "smp:FPN"], [], ArgumentError, "smp:FPN was given twice"),
        (["."], [], RunError, "holds no record.json: it is no run"),
        (["nowhere.onnx"], [], ExportError, "nowhere.onnx: no such file"),
        (["student.safetensors"], [], ArgumentError, "as fast as the run's student: name the run"),
        (["smp:FPN"], ["onx"], ArgumentError, "formats: 'onx': expected onnx, pt2; did you mean 'onnx'"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    given: list[str],
    formats: list[str],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        check_given(given, formats)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": []}, "sizes: expected at least one"),
        ({"sizes": [(0, 4)]}, "sizes: expected heights and widths from 1, got 0x4"),
        ({"batches": [2, 0]}, "batch sizes: expected whole numbers from 1"),
        ({"seconds": 0.0}, "seconds: expected a positive number"),
        ({"device": "tpu"}, "device: expected auto, cpu or cuda"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        latency.run(["smp:FPN"], **options)


class Red(nn.Module):
    """The network that `shipkit.File` is a right export of."""

    def __init__(self, binary: bool = False) -> None:
        super().__init__()
        self.binary = binary

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, :1]
        return red if self.binary else torch.cat([red, -red], 1)


def off(file: Callable[[Tensor], Tensor], like: File, network: nn.Module | None = None, *, int8: bool = False) -> Any:
    """How far what `file` gives is from what a right file with the options of `like` gives."""
    made = like.manifest.model_copy(update={"int8": object()} if int8 else {})
    right = graph_of(network or Red(made.binary), made, torch.device("cpu"))
    return off_by(contestant(file, manifest=made, right=right))


def test_another_class_map_is_not_timed() -> None:
    right = File()
    assert off(lambda images: right(images) * (1 + 5e-4), right) == pytest.approx(5e-4, rel=0.01)
    with pytest.raises(DensekdError, match=r"run, student onnx is off its network by .* nothing was timed"):
        off(lambda images: right(images) * 1.01, right)
    words = r"float32 \(2, 2, 4, 3\), its network float32 \(2, 2, 4, 6\); nothing was timed"
    with pytest.raises(DensekdError, match=words):
        off(lambda images: right(images)[..., ::2], right)
    with pytest.raises(DensekdError, match="nothing was timed"):
        off(lambda images: right(images) * torch.nan, right)
    assert off(lambda images: right(images) * 1.2, right, int8=True) == pytest.approx(0.2)
    assert off_by(contestant(lambda images: images)) is None


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("output", ["logits", "softmax", "argmax"])
@pytest.mark.parametrize("values", ["normalised", "0..255"])
def test_what_is_inside_a_file_is_part_of_what_is_right(binary: bool, output: str, values: str) -> None:
    inside = {"output": output, "normalise": values == "0..255"}
    right = File(inside, binary=binary, values=values)
    assert off(right, right) == pytest.approx(0, abs=1e-6)
    # As if the options had been forgotten when the file was made.
    for wrong in (
        File({**inside, "output": "softmax" if output == "logits" else "logits"}, binary=binary, values=values),
        File({**inside, "normalise": False}, binary=binary),
    ):
        if wrong.manifest.inside == right.manifest.inside:
            continue
        with pytest.raises(DensekdError, match="nothing was timed"):
            off(lambda images, wrong=wrong: wrong(images), right)


def test_a_file_that_resizes_is_compared_with_the_network_at_that_size() -> None:
    right = File({"resize": (8, 12)})
    graph = graph_of(Red(), right.manifest, torch.device("cpu"))
    assert off(graph, right) == 0
    with pytest.raises(DensekdError, match="off its network"):
        off(File(), right)


def test_class_ids_may_differ_where_two_classes_are_close_alone() -> None:
    like = File({"output": "argmax"})
    close = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        close.weight.copy_(torch.tensor([[1.0, 0, 0], [1.0001, 0, 0]])[..., None, None])
    share = off(lambda images: 1 - close(images).argmax(1), like, close)
    assert share == 1
    with pytest.raises(DensekdError, match=r"another class than its network at \d+ of 48 pixels that are not close"):
        off(lambda images: 1 - like(images), like)
    with pytest.raises(DensekdError, match=r"gives int64 \(2, 4, 6\), its network float32 \(2, 2, 4, 6\)"):
        off(like, File())
    assert off(lambda images: 1 - like(images), like, int8=True) == 1


def test_images_are_the_same_for_all_and_as_each_takes_them() -> None:
    plain, last = contestant(lambda images: images), contestant(lambda images: images, channels_last=True)
    assert torch.equal(plain.images(2), last.images(2))
    assert last.images(2).is_contiguous(memory_format=torch.channels_last)
    pixels = contestant(lambda images: images, manifest=File(values="0..255").manifest).images(2)
    assert float(pixels.min()) >= 0
    assert 100 < float(pixels.max()) <= 255


def test_a_case_and_its_row() -> None:
    teacher = Turns([0.4, 0.4, 0.5], [0.3] * 3)
    timed = {1: Turns([0.1] * 19 + [0.9], [0.05] * 20), 4: Turns([0.2] * 3, [0.2] * 3), 8: Turns([0.5] * 3, [0.5] * 3)}
    case = latency._case(contestant(lambda images: images), timed, teacher, 3_000_000, 1e-6)
    assert (case.name, case.variant, case.median_seconds) == ("run:4x6", "student onnx", 0.1)
    assert case.ratio == pytest.approx(4.0)
    assert case.extra["p95_seconds"] == pytest.approx(0.14)  # between the 19th and the 20th of 20: 0.1 + 0.05 * 0.8
    assert (case.extra["best_batch"], case.extra["images_per_second"]) == (4, pytest.approx(20.0))
    assert case.extra["by_batch"] == {"1": pytest.approx(10.0), "4": pytest.approx(20.0), "8": pytest.approx(16.0)}
    record = BenchRecord(
        bench="latency", device="cpu", threads=1, command="", commit="", load=[1.5, 1, 1], cases=[case], environment={}
    )
    assert rows(record) == [
        {
            "network": "run:4x6",
            "variant": "student onnx",
            "ms": 100.0,
            "p95 ms": 140.0,
            "times the teacher": 4.0,
            "images/s": 20.0,
            "at batch": 4,
            "memory (MB)": 3.0,
            "file (MB)": 2.0,
            "error": "1.0e-06",
        }
    ]
    alone = latency._case(contestant(lambda images: images), timed, None, None, None)
    assert (alone.ratio, alone.peak_bytes) == (None, None)
    assert latency._case(contestant(lambda images: images, variant="teacher"), timed, None, None, None).ratio == 1.0
    alone = case.model_copy(update={"error": None})
    assert [row["error"] for row in rows(record.model_copy(update={"cases": [alone]}))] == ["not compared"]
    torch_only = [alone.model_copy(update={"variant": name}) for name in ("teacher", "student", "model")]
    assert [row["error"] for row in rows(record.model_copy(update={"cases": torch_only}))] == [None] * 3
    assert busy(record, 8) is None
    assert busy(record, 2) is not None
    assert "load average 1.5 on 2 CPUs" in str(busy(record, 2))


def test_the_size_where_nothing_says_one() -> None:
    assert size_of(["smp:FPN"]) == SIZE


@pytest.mark.slow
def test_a_run_its_teacher_and_its_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
        pytest.skip("the extra export is not installed")
    root = make_place(tmp_path / "data")
    taught = train(recipe(root, student={"model": f"{root}/nets.py:teacher"}), out=tmp_path / "teacher")
    run = distill(distillation(root, taught.path), out=tmp_path / "taught")
    seen: list[tuple[int, int]] = []
    record = latency.run(
        [str(run.path), f"{root}/nets.py:no_norm"],
        sizes=[(16, 24)],
        batches=(2,),
        seconds=0.02,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 19) for n in range(1, 20)]
    assert BenchRecord.model_validate(dump(record)) == record
    assert [(case.name, case.variant) for case in record.cases] == [
        *(("taught:16x24", variant) for variant in ("teacher", "student", "student onnx", "student pt2")),
        (f"{root}/nets.py:no_norm:16x24", "model"),
    ]
    teacher, student, onnx, pt2, other = record.cases
    assert teacher.ratio == 1.0
    assert student.ratio == pytest.approx(teacher.median_seconds / student.median_seconds)
    assert other.ratio == pytest.approx(teacher.median_seconds / other.median_seconds)
    assert student.extra["parameters"] == 6 * 27 + 6 + 12 + 3 * 6 + 3
    assert student.extra["flops"] == 2 * 16 * 24 * (6 * 27 + 3 * 6)
    assert student.extra["file_bytes"] == sum(t.numel() * t.element_size() for t in run.student().state_dict().values())
    for case in (onnx, pt2):
        assert case.error is not None
        assert 0 <= case.error < 1e-5
        assert len(case.samples) == case.extra["calls"]["1"] >= 7
    assert record.environment["memory"].startswith("growth of this process's resident memory")

    files = [tmp_path / name for name in ("plain.onnx", "fixed.pt2")]
    export_run(run, "onnx", out=files[0], normalise=True, resize=(8, 12), output="argmax", images=1)
    export_run(run, "pt2", out=files[1], size=(8, 16), output="softmax", images=1)
    options: Any = {"sizes": [(16, 24)], "batches": (1,), "formats": [], "seconds": 0.01}
    made = latency.run([str(run.path), *map(str, files)], **options)
    assert [(case.name, case.variant) for case in made.cases[2:]] == [
        ("plain.onnx:16x24", "onnx"),
        ("fixed.pt2:8x16", "pt2"),
    ]
    assert all(case.error is not None and case.error < 1e-5 for case in made.cases[2:])
    assert made.environment["notices"] == "none"
    alone = latency.run([str(files[1])], **options)
    assert alone.cases[0].error is None
    told = "fixed.pt2: what it gives is compared with nothing: its run, taught, was not given"
    assert alone.environment["notices"] == told

    (tmp_path / "teacher").rename(tmp_path / "gone")
    out = tmp_path / "record.json"
    line = ["bench", "latency", str(run.path), "--sizes", "16x24", "--batch-sizes", "1", "--formats", "none"]
    assert call([*line, "--seconds", "0.02", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "taught: the teacher has random weights, which take as long" in told.err
    assert [text.split("\t")[1] for text in told.out.splitlines()] == ["variant", "teacher", "student"]
    written = BenchRecord.model_validate(json.loads(out.read_text()))
    assert written.command.endswith("--device cpu --threads 1 --seconds 0.02")
    for wrong, words in ((["--sizes", "16"], "expected HEIGHTxWIDTH"), ([], "exists; use --force")):
        with pytest.raises(SystemExit):
            call([*line, "--out", str(out if not wrong else tmp_path / "new.json"), *wrong])
        assert words in capsys.readouterr().err
