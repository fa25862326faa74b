from __future__ import annotations

import copy
import json
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densekd
from densekd.errors import ArgumentError, DensekdError, DtypeError, ModelError, TapError
from densekd.losses import ChannelWise, FeatureMimic
from densekd.teacher import Batch, FrozenTeacher, TeacherSource, choose, freezing
from densekd.teacher import fold as folding
from densekd.teacher import plain as plain_teacher
from densekd.teacher.fidelity import MapError

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def network(width: int = 4, classes: int = 5, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            norm=nn.BatchNorm2d(width),
            act=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
            head=nn.Conv2d(width, classes, 1),
            up=nn.Upsample(scale_factor=2, mode="bilinear"),
        )
    )
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2.0)
    return made


def images(n: int = 2, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(7))


def frozen(teacher: nn.Module | None = None, **options: Any) -> FrozenTeacher:
    options = {"example": images(), "taps": ("head",), "dtype": "float32", **options}
    return densekd.freeze_teacher(network() if teacher is None else teacher, **options)


def exact_maps(teacher: nn.Module, x: Tensor, *paths: str) -> dict[str, Tensor]:
    """The outputs of modules at the top, in float64 and evaluation mode."""
    wide = copy.deepcopy(teacher).double().eval().requires_grad_(False)
    found, value = {}, x.double()
    for name, module in wide.named_children():
        value = module(value)
        found[name] = value.clone()
    return {path: found[path] for path in paths}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of timing; how long it takes is no matter of these tests."""
    monkeypatch.setattr("densekd.teacher.plain._ROUNDS", 1)


class TestMaps:
    @pytest.mark.parametrize("channels_last", [True, False])
    @pytest.mark.parametrize("fold", [True, False])
    def test_equal_the_teachers(self, fold: bool, channels_last: bool) -> None:
        teacher = network()
        fast = frozen(teacher, taps=["head", "norm", "up"], fold_batchnorm=fold, channels_last=channels_last)
        x, seen = images(3, 20), []
        fast.network.stem.register_forward_pre_hook(lambda _module, given: seen.extend(given))
        maps = fast.maps(Batch((x,), {}))
        assert seen[0].is_contiguous(memory_format=torch.channels_last) is channels_last
        for tap, exact in exact_maps(teacher, x, "head", "norm", "up").items():
            torch.testing.assert_close(maps[tap].double(), exact, rtol=1e-5, atol=1e-5)
            assert not maps[tap].requires_grad
        assert isinstance(fast, TeacherSource)
        assert fast.network.stem.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert isinstance(fast.network.norm, nn.BatchNorm2d)  # tapped: never folded away

    def test_folds(self) -> None:
        fast = frozen()
        assert isinstance(fast.network.norm, nn.Identity)
        assert (fast.report.folded, fast.report.left) == (1, {})

    def test_teacher_is_left_as_it_was(self) -> None:
        teacher = network().train()
        teacher.norm.eval()
        teacher.head.weight.requires_grad_(False)
        before = copy.deepcopy(teacher.state_dict())
        modes = [module.training for module in teacher.modules()]
        grads = [parameter.requires_grad for parameter in teacher.parameters()]
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        fast = frozen(teacher, dtype="auto")
        assert torch.equal(torch.random.get_rng_state(), state)
        assert [module.training for module in teacher.modules()] == modes
        assert [parameter.requires_grad for parameter in teacher.parameters()] == grads
        assert not any(module._forward_hooks for module in teacher.modules())
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, before[name])
        teacher.head.weight.data.zero_()
        assert fast.maps(Batch((images(),), {}))["head"].abs().sum() > 0

    def test_always_in_evaluation_mode(self) -> None:
        fast = frozen(network(), fold_batchnorm=False)
        expected = fast.maps(Batch((images(),), {}))["head"]
        fast.network.train()  # with its dropout
        assert torch.equal(fast.maps(Batch((images(),), {}))["head"], expected)

    def test_micro_batches(self) -> None:
        teacher = network()
        sizes: list[int] = []

        class Counted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = teacher

            def forward(self, x: Tensor, flags: Tensor | None = None) -> Tensor:
                assert flags is None or len(flags) == len(x)
                sizes.append(len(x))
                return self.inner(x)

        fast = frozen(Counted(), taps=["output"], micro_batch=4)
        sizes.clear()
        x = images(10)
        maps = fast.maps(Batch((x,), {"flags": torch.arange(10)}))
        assert sizes == [3, 3, 4]
        torch.testing.assert_close(maps["output"].double(), exact_maps(teacher, x, "up")["up"], rtol=1e-5, atol=1e-5)

    def test_own_size(self) -> None:
        teacher = network()
        fast = frozen(teacher, size=(8, 12))
        x = images()
        small = F.interpolate(x.double(), (8, 12), mode="bilinear", antialias=True)
        found = fast.maps(Batch((x,), {}))["head"]
        torch.testing.assert_close(found.double(), exact_maps(teacher, small, "head")["head"], rtol=1e-4, atol=1e-4)
        assert fast.report.size == fast.size == (8, 12)

    def test_tokens_come_upright(self) -> None:
        """Tokens of an own size can only be told by who knows the size."""

        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Conv2d(3, 6, 4, stride=4)

            def forward(self, x: Tensor) -> Tensor:
                return self.embed(x).flatten(2).transpose(1, 2)

        teacher = Tokens()
        fast = frozen(teacher, taps=["output"], size=(8, 16))
        x = images()
        small = F.interpolate(x, (8, 16), mode="bilinear", antialias=True)
        found = fast.maps(Batch((x,), {}))["output"]
        torch.testing.assert_close(found, teacher.embed(small).detach())
        assert any("tokens (N, L, C) brought to a grid" in notice for notice in fast.notices)

    def test_keyword_arguments_and_mappings(self) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network()

            def forward(self, pixel_values: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
                return {"out": self.inner(pixel_values) * scale}

        fast = frozen(Named(), example={"pixel_values": images(), "scale": 2.0}, taps=["output"])
        maps = fast.maps(Batch((), {"pixel_values": images(), "scale": 3.0}))
        exact = exact_maps(network(), images(), "up")["up"] * 3
        labels = exact.argmax(1)
        example = {"pixel_values": images(), "scale": 2.0}
        assert frozen(Named(), example=example, taps=["output"], held_out=[(images(), labels)]).report.miou == 1.0
        torch.testing.assert_close(maps["output"].double(), exact, rtol=1e-5, atol=1e-5)


class TestPrecision:
    def test_bfloat16(self) -> None:
        teacher = network()
        fast = frozen(teacher, taps=["head", "output"], dtype="bfloat16", temperature=2.0)
        maps = fast.maps(Batch((images(),), {}))
        assert {found.dtype for found in maps.values()} == {torch.bfloat16}
        exact = exact_maps(teacher, images(), "head")["head"]
        p, q = ((m.double().flatten(2) / 2.0).softmax(-1) for m in (maps["head"], exact))
        error = fast.report.errors["head"]
        assert error.maps == pytest.approx(float((maps["head"].double() - exact).norm() / exact.norm()), rel=1e-3)
        assert error.softened == pytest.approx(float((p - q).norm() / q.norm()), rel=1e-3)
        agreed = (maps["output"].argmax(1) == exact_maps(teacher, images(), "up")["up"].argmax(1)).double().mean()
        assert fast.report.agreement == pytest.approx(float(agreed))
        assert (fast.report.dtype, fast.report.autocast, fast.report.why) == ("bfloat16", False, "asked for")

    def test_statistics_that_are_not_folded_stay_wide(self) -> None:
        inner = frozen(taps=["norm"], dtype="bfloat16").network
        assert {inner.norm.running_var.dtype, inner.norm.weight.dtype} == {torch.float32}
        assert inner.stem.weight.dtype == torch.bfloat16

    def test_autocast_around_changes_nothing(self) -> None:
        fast = frozen()
        plain = fast.maps(Batch((images(),), {}))["head"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fast.maps(Batch((images(),), {}))["head"], plain)
        assert plain.dtype == torch.float32

    def test_autocast_where_the_weights_cannot_be_converted(self) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Conv2d(3, 5, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(x.float())

        fast = frozen(Own(), dtype="bfloat16")
        assert fast.report.autocast
        assert any("does not run with its weights in bfloat16" in notice for notice in fast.notices)
        assert fast.network.head.weight.dtype == torch.float32
        assert fast.maps(Batch((images(),), {}))["head"].dtype == torch.bfloat16
        assert ("number format", "bfloat16 (autocast, weights in float32)") in fast.report.rows()

    def test_a_teacher_in_bfloat16(self) -> None:
        teacher = network().bfloat16()
        fast = frozen(teacher)
        assert fast.maps(Batch((images(),), {}))["head"].dtype == torch.float32
        assert teacher.head.weight.dtype == torch.bfloat16
        assert any("came in another number format" in notice for notice in fast.notices)

    def test_infinite_maps_are_refused(self) -> None:
        teacher = network()
        teacher.head.weight.data *= 1e6
        with pytest.raises(ModelError, match=r"map 'head' of the example holds NaN or infinite values in float16"):
            frozen(teacher, dtype="float16")
        teacher.head.bias.data[0] = float("nan")
        with pytest.raises(ModelError, match="already in float32"):
            frozen(teacher)

    def test_a_large_error_is_told(self) -> None:
        teacher = network()
        teacher.head.weight.data *= 1e2
        fast = frozen(teacher, dtype="bfloat16", temperature=1.0)
        assert any("in bfloat16 the softened map 'head' errs by" in notice for notice in fast.notices)


def timed(**seconds: float) -> Callable[[Sequence[Any], Batch], list[float]]:
    def race(engines: Sequence[Any], batch: Batch) -> list[float]:
        return [9.0, *(seconds[engine.precision.name] for engine in engines[1:])]

    return race


class TestAuto:
    def choice(self, monkeypatch: pytest.MonkeyPatch, teacher: nn.Module, seconds: float, **options: Any) -> Any:
        monkeypatch.setattr(freezing, "race", timed(float32=1.0, bfloat16=seconds))
        return frozen(teacher, dtype="auto", **options).report

    def test_takes_what_is_fast_and_true(self, monkeypatch: pytest.MonkeyPatch) -> None:
        report = self.choice(monkeypatch, network(), 0.5)
        assert report.dtype == "bfloat16"
        assert "2.00 times as fast as float32; its softened maps err by" in report.why
        assert [candidate.verdict for candidate in report.candidates] == ["slower than the one taken", "taken"]
        assert report.speedup == 18.0

    def test_not_for_less_than_a_tenth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        report = self.choice(monkeypatch, network(), 0.95)
        assert (report.dtype, report.why) == (
            "float32",
            "bfloat16: it is 1.05 times as fast as float32, less than 1.1",
        )

    def test_not_where_there_is_nothing_to_gain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Timings of a few milliseconds differ from run to run, and the choice must not."""
        race = {"bfloat16": 0.004, "float32": 0.019}
        monkeypatch.setattr(freezing, "race", lambda engines, _: [0.02, *(race[e.precision.name] for e in engines[1:])])
        report = frozen(network(), dtype="auto").report
        assert report.dtype == "float32"
        assert "float32 takes 19 ms, less than 20" in report.why
        # A GPU takes no longer for a large network.
        measured = choose.Measured({"head": MapError(0.0, 0.0, True)}, None, None)
        engine: Any = SimpleNamespace(device=torch.device("cuda"))
        plain, other = (choose._Tried(engine, measured, seconds) for seconds in (0.019, 0.004))
        assert choose._why_not(other, plain) is None

    def test_not_with_a_large_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        teacher = network()
        teacher.head.weight.data *= 1e2
        report = self.choice(monkeypatch, teacher, 0.5, temperature=1.0)
        assert report.dtype == "float32"
        assert "more than 1%" in report.why

    def test_not_where_miou_moves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two classes whose logits differ by less than bfloat16 can tell: their maps are the same to 1%."""
        teacher = nn.Sequential(OrderedDict(head=nn.Conv2d(3, 2, 1)))
        with torch.no_grad():
            teacher.head.weight.copy_(torch.full((2, 3, 1, 1), 0.5))
            teacher.head.bias.copy_(torch.tensor([2.0, 2.001]))
            teacher.head.weight[1, 0] += 0.002
        x = images()
        labels = teacher(x).argmax(1)
        report = self.choice(monkeypatch, teacher, 0.5, held_out=[(x, labels)])
        assert report.dtype == "float32"
        assert "bfloat16: its mIoU moves by" in report.why
        assert report.miou == report.miou_plain == 1.0

    @pytest.mark.parametrize(
        ("moved", "words"), [(0.0009, None), (-0.0009, None), (0.0011, "+0.11"), (-0.0011, "-0.11")]
    )
    def test_a_tenth_of_a_point_and_one_per_cent_are_the_limits(self, moved: float, words: str | None) -> None:
        engine: Any = SimpleNamespace(device=torch.device("cpu"))

        def tried(error: float, miou: float | None, seconds: float) -> choose._Tried:
            return choose._Tried(engine, choose.Measured({"head": MapError(error, error, True)}, None, miou), seconds)

        plain = tried(0.0, 0.5, 1.0)
        verdict = choose._why_not(tried(0.0099, 0.5 + moved, 0.5), plain)
        assert verdict == (words and f"its mIoU moves by {words} points, more than 0.1")
        assert choose._why_not(tried(0.0101, 0.5 + moved, 0.5), plain) == "its softened maps err by 1%, more than 1%"

    @pytest.mark.parametrize(("factor", "taken"), [(1.0, "bfloat16"), (1e2, "float32")])
    def test_held_out_images_are_run_twice(self, monkeypatch: pytest.MonkeyPatch, factor: float, taken: str) -> None:
        """Through the plain teacher and through what is taken: a format that errs too much anyway is not scored."""
        teacher = network()
        teacher.head.weight.data *= factor
        scored: list[Any] = []
        score = plain_teacher.Plain.score
        monkeypatch.setattr(
            plain_teacher.Plain,
            "score",
            lambda self, engine: scored.append((engine.precision.name, engine.channels_last)) or score(self, engine),
        )
        held_out = [(images(), torch.zeros(2, 16, 16, dtype=torch.int64))]
        report = self.choice(monkeypatch, teacher, 0.5, temperature=1.0, held_out=held_out)
        assert report.dtype == taken
        assert scored == [("float32", False), (taken, True)]
        assert report.candidates[0].miou == report.miou_plain is not None
        assert report.miou is not None

    def test_what_does_not_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Picky(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Conv2d(3, 5, 1)

            def forward(self, x: Tensor) -> Tensor:
                if torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
                    raise RuntimeError("float32 alone")
                return self.head(x)

        report = self.choice(monkeypatch, Picky(), 0.5)
        assert (report.dtype, report.why) == ("float32", "bfloat16: does not run (RuntimeError: float32 alone)")


class TestReport:
    def test_miou_by_hand(self) -> None:
        teacher = network()
        x = images()
        labels = torch.randint(0, 5, (2, 16, 16), generator=torch.Generator().manual_seed(0))
        labels[:, :3] = 9
        report = frozen(teacher, held_out=[(x[:1], labels[:1]), (x[1:], labels[1:])], ignore_index=9).report
        answer = exact_maps(teacher, x, "up")["up"].argmax(1)
        ious = []
        for k in range(5):
            a, b, counted = answer == k, labels == k, labels != 9
            union = ((a | b) & counted).sum().item()
            if union:
                ious.append((a & b & counted).sum().item() / union)
        assert report.miou == report.miou_plain == pytest.approx(sum(ious) / len(ious))
        assert report.held_out == 2

    def test_words_and_values(self) -> None:
        report = frozen(taps=["head", "norm"], micro_batch=1).report
        values = json.loads(json.dumps(report.as_dict()))
        assert values["left"] == {"norm": "norm is tapped"}
        assert set(values["errors"]) == {"head", "norm"}
        assert values["speedup"] == pytest.approx(values["seconds_plain"] / values["seconds"])
        rows = dict(report.rows())
        assert rows["number format"] == "float32"
        assert rows["batch norms folded"] == "0, 1 left (1: norm is tapped)"
        assert rows["also"] == "channels last, micro-batches of 1"
        assert "error of head" in rows

    def test_a_wrong_fold_is_refused_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = folding._fold

        def wrong(layer: Any, norm: Any) -> str | None:
            reason = right(layer, norm)
            layer.bias.data += 0.1
            return reason

        monkeypatch.setattr(folding, "_fold", wrong)
        with pytest.raises(ModelError, match=r"is wrong: after folding 1 batch.*'head'.*errs by.*gives .* is 'norm'"):
            frozen()

    def test_a_network_that_cannot_be_watched(self) -> None:
        class Shy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)

            def forward(self, x: Tensor) -> Tensor:
                if torch._C._len_torch_dispatch_stack():
                    raise NotImplementedError("not under a mode")
                return self.norm(self.head(x))

        fast = frozen(Shy(), taps=["output"])
        assert fast.report.folded == 0
        assert "batch normalisations are not folded" in fast.notices[-1]
        assert "not under a mode" in fast.notices[-1]

    def test_a_network_that_asks_its_norm(self) -> None:
        class Asking(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)

            def forward(self, x: Tensor) -> Tensor:
                return self.norm(self.head(x)) * self.norm.eps

        with pytest.raises(
            ModelError, match=r"does not run once its batch normalisations are folded.*fold_batchnorm=F"
        ):
            frozen(Asking(), taps=["output"])
        assert frozen(Asking(), taps=["output"], fold_batchnorm=False).report.folded == 0


class TestInADistiller:
    def distiller(self, fast: FrozenTeacher, **options: Any) -> densekd.Distiller:
        terms = [
            densekd.Term(ChannelWise(), student="head", teacher="head"),
            densekd.Term(FeatureMimic(), student="act", teacher="act", name="mimic"),
        ]
        return densekd.Distiller(network(3, seed=1), fast, terms, images(), **options)

    def test_same_values_as_the_network(self) -> None:
        fast = self.distiller(frozen(taps=["head", "act"])).eval()
        plain = self.distiller(network()).eval()  # type: ignore[arg-type]
        ours, theirs = fast(images()), plain(images())
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-6)
        ours.loss.backward()
        assert isinstance(fast.teacher.norm, nn.Identity)
        assert fast.teacher is fast.source.network
        assert not any("teacher" in name for name in fast.state_dict())

    def test_reduced_formats(self) -> None:
        distiller = self.distiller(frozen(taps=["head", "act"], dtype="bfloat16"))
        out = distiller(images())
        out.loss.backward()
        assert out.loss.dtype == torch.float32

    def test_missing_tap(self) -> None:
        with pytest.raises(TapError, match=r"gives no map 'act'.*it gives: 'head'.*name its taps when it is made"):
            self.distiller(frozen())

    def test_class_maps(self) -> None:
        fast = frozen(network(classes=7), taps=["output"])
        assert (fast.class_taps, fast.classes) == ({"output"}, 7)
        term = densekd.Term(ChannelWise(), student="output", teacher="output")
        with pytest.raises(TapError, match=r"has 5 classes, the teacher's 'output' has 7.*class_map"):
            densekd.Distiller(network(3), fast, [term], images())
        distiller = densekd.Distiller(network(3), fast, [term], images(), class_map=[[0], [1], [2, 3], [4], [5, 6]])
        assert torch.isfinite(distiller(images()).loss)

    def test_teacher_input(self) -> None:
        spec = densekd.TeacherInput([0.5] * 3, [0.5] * 3, [0.0] * 3, [1.0] * 3, size=(8, 8))
        term = [densekd.Term(ChannelWise(), student="head", teacher="head")]
        x = images()
        expected = densekd.Distiller(network(3, seed=1), network(), term, x, teacher_input=spec)(x).loss
        term = [densekd.Term(ChannelWise(), student="head", teacher="head")]
        for size in (None, (8, 8)):
            fast = densekd.Distiller(network(3, seed=1), frozen(size=size), term, x, teacher_input=spec)
            torch.testing.assert_close(fast(x).loss, expected, rtol=1e-4, atol=1e-6)
            term = [densekd.Term(ChannelWise(), student="head", teacher="head")]
        with pytest.raises(ArgumentError, match=r"to 8x8, and the FrozenTeacher resizes them again, to 12x12"):
            densekd.Distiller(network(3), frozen(size=(12, 12)), term, x, teacher_input=spec)

    def test_follows_nothing_but_the_device(self) -> None:
        distiller = self.distiller(frozen(taps=["head", "act"])).double()
        fast = distiller.source
        assert isinstance(fast, FrozenTeacher)
        assert fast.network.stem.weight.dtype == torch.float32
        fast.network.train()
        distiller.train()
        assert not any(module.training for module in fast.network.modules())
        moved = copy.deepcopy(fast)._apply(lambda tensor: tensor.to("meta"))
        assert moved.device.type == "meta"
        assert moved.notices[-1] == "it was measured on cpu and runs on meta now"
        stays = frozen(device="cpu")._apply(lambda tensor: tensor.to("meta"))
        assert stays.device.type == "cpu"

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies(self, how: Callable[[Any], Any]) -> None:
        fast = frozen()
        other = how(fast)
        fast.network.head.weight.data.zero_()
        fast.close()
        maps = other.maps(Batch((images(),), {}))
        torch.testing.assert_close(
            maps["head"].double(), exact_maps(network(), images(), "head")["head"], rtol=1e-5, atol=1e-5
        )
        assert other.report == fast.report

    def test_close(self) -> None:
        distiller = self.distiller(frozen(taps=["head", "act"]))
        distiller.close()
        with pytest.raises(TapError, match="removed by close"):
            distiller(images())

    def test_started_before_the_student_and_asked_after_it(self) -> None:
        order: list[str] = []
        student = network(3, seed=1)
        student.register_forward_hook(lambda *_: order.append("student"))

        class Source:
            def maps(self, batch: Batch) -> dict[str, Tensor]:
                return self.submit(batch)()

            def submit(self, batch: Batch) -> Callable[[], dict[str, Tensor]]:
                order.append("started")

                def collect() -> dict[str, Tensor]:
                    order.append("asked")
                    return {"head": torch.ones(2, 5, 8, 8)}

                return collect

        term = densekd.Term(ChannelWise(), student="head", teacher="head")
        distiller = densekd.Distiller(student, Source(), [term], images())
        order.clear()
        distiller(images())
        assert order == ["started", "student", "asked"]


def on_meta() -> nn.Module:
    return network().to("meta")


def locked() -> nn.Module:
    made = network()
    made.lock = threading.Lock()  # type: ignore[assignment]
    return made


def failing() -> nn.Module:
    return nn.Sequential(OrderedDict(head=nn.Conv2d(4, 5, 1)))


class TestRefused:
    @pytest.mark.parametrize(
        ("made", "words"),
        [
            (on_meta, "'stem.weight' is on the meta device"),
            (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "has no shape yet"),
            (locked, r"\(Sequential\) cannot be copied by copy.deepcopy \(TypeError"),
            (failing, r"fails on the example, images \(2, 3, 16, 16\) on cpu: RuntimeError"),
        ],
    )
    def test_networks(self, made: Callable[[], nn.Module], words: str) -> None:
        with pytest.raises(ModelError, match=words):
            frozen(made())

    def test_compiled_already(self) -> None:
        teacher = network()
        teacher.head._compiled_call_impl = lambda x: x
        with pytest.raises(ModelError, match=r"its module 'head' is compiled already.*compile=True"):
            frozen(teacher)

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(ModelError, match=r"needs a C\+\+ compiler, and there is no '(g|clang)\+\+' on the PATH"):
            frozen(compile=True, taps=[])  # before anything else
        monkeypatch.setenv("CXX", "mycc")
        with pytest.raises(ModelError, match="there is no 'mycc'"):
            frozen(compile=True)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"taps": "head"}, r"taps: expected a list of names.*got 'head'"),
            ({"taps": []}, "taps: expected a list of names"),
            ({"dtype": "bfloat"}, "got 'bfloat'; did you mean 'bfloat16'"),
            ({"dtype": torch.float16}, "did you mean 'float16'"),
            ({"compile": "yes"}, "compile: expected True or False, got 'yes'"),
            ({"cuda_graph": "no"}, "cuda_graph: expected 'auto', True or False"),
            ({"cuda_graph": True}, "cuda_graph=True needs a CUDA device, the teacher is on cpu"),
            ({"device": "nowhere"}, "device: 'nowhere' cannot be used here"),
            ({"device": "meta"}, "no values to compute with"),
            ({"micro_batch": 0}, "micro_batch: expected a whole number from 1, or None, got 0"),
            ({"num_classes": 2.0}, "num_classes: expected a whole number"),
            ({"size": 64}, r"size: expected \(height, width\)"),
            ({"temperature": 0}, "temperature: expected a positive finite number, got 0"),
            ({"ignore_index": "255"}, "ignore_index: expected the label of void"),
            ({"held_out": []}, "held_out holds no batch"),
            ({"held_out": [1]}, r"held_out: expected batches \(images, labels\), got a int"),
            ({"held_out": [(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 8, 8))]}, r"labels \(N, H, W\), got shapes"),
            (
                {"held_out": [(images(1), torch.full((1, 16, 16), 5))]},
                "held_out: labels from 5 to 5; expected the teacher's class ids 0 to 4, or the ignore_index 255",
            ),
            (
                {"held_out": [(images(1), torch.ones(1, 16, 16))], "num_classes": 3},
                "num_classes=3, but the teacher's class map has 5 channels",
            ),
            ({"example": torch.ones(3, 8, 8)}, r"expected images, a tensor \(N, C, H, W\)"),
        ],
    )
    def test_options(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            frozen(**options)

    def test_held_out_images_that_do_not_run(self) -> None:
        with pytest.raises(ModelError, match="fails on the held-out images on cpu: RuntimeError"):
            frozen(held_out=[(torch.ones(1, 4, 8, 8), torch.ones(1, 8, 8))])

    def test_no_class_map_to_score(self) -> None:
        teacher = nn.Sequential(OrderedDict(head=nn.Conv2d(3, 5, 1), tokens=nn.Flatten(2)))
        with pytest.raises(ArgumentError, match="own output is no class map"):
            frozen(teacher, held_out=[(images(), torch.ones(2, 16, 16))])

    def test_no_network(self) -> None:
        with pytest.raises(DtypeError, match=r"expected an nn\.Module, got a FrozenTeacher"):
            frozen(frozen())  # type: ignore[arg-type]

    def test_taps_that_cannot_be(self) -> None:
        with pytest.raises(TapError, match="did you mean 'head'"):
            frozen(taps=["heads"])
        teacher = network()
        with pytest.raises(DensekdError):
            frozen(teacher, taps=["missing"])
        assert not any(module._forward_hooks for module in teacher.modules())
