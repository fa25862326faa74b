from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.distiller import Distiller, Term
from densekd.losses import ChannelWise, FeatureMimic, PixelWise

pytestmark = pytest.mark.slow


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 5, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


@pytest.fixture
def distiller() -> Distiller:
    torch._dynamo.reset()
    torch.manual_seed(0)
    terms = [
        Term(ChannelWise(), student="3", teacher="3", weight=3.0),
        Term(FeatureMimic(), student="1", teacher="1", weight=0.5, name="mimic"),
    ]
    return Distiller(network(4), network(8), terms, images())


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_whole_distiller_is_one_graph(distiller: Distiller) -> None:
    plain = copy.deepcopy(distiller)
    compiled = torch.compile(distiller, backend="aot_eager", fullgraph=True)
    got, expected = compiled(images()), plain(images())
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.student, expected.student)
    got.loss.backward()
    expected.loss.backward()
    for (name, p), q in zip(distiller.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    assert distiller._reader.store.seen == {}


def test_weights_may_change_every_step(distiller: Distiller) -> None:
    plain = copy.deepcopy(distiller)
    compiled = torch.compile(distiller, backend="aot_eager", fullgraph=True)
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    for weight in (3.0, 2.5, 2.0, 1.5, 1.0, 0.5):
        for each in (distiller, plain):
            each.set_weights({"channelwise:3": weight})
        torch.testing.assert_close(compiled(images()).loss, plain(images()).loss)
    assert counted["unique_graphs"] <= 2
    for each in (distiller, plain):
        each.set_weights({"channelwise:3": 0.0})
    out = compiled(images())
    torch.testing.assert_close(out.loss, plain(images()).loss)
    assert out.parts["channelwise:3"].item() == 0.0


@pytest.mark.parametrize("in_place", [True, False])
def test_student_compiled_after_building(distiller: Distiller, in_place: bool) -> None:
    expected = copy.deepcopy(distiller)(images()).loss
    if in_place:
        distiller.student.compile(backend="aot_eager")
    else:
        distiller.student = torch.compile(distiller.student, backend="aot_eager")
    distiller.eval()
    distiller.student(images())  # alone, before and after: nothing is recorded
    distiller.train()
    out = distiller(images())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    distiller.student(images())
    assert distiller._reader.store.seen == {}
    assert distiller(images()).loss.isfinite()


def test_tap_set_after_compiling_is_refused(distiller: Distiller) -> None:
    student = torch.compile(network(4), backend="aot_eager")
    terms = [Term(ChannelWise(), student="3", teacher="3")]
    with pytest.raises(Exception, match=r"already compiled module \(the student itself\)"):
        Distiller(student, network(8), terms, images())
    out = Distiller(student, network(8), [Term(ChannelWise(), student="output", teacher="output")], images())(images())
    assert out.loss.isfinite()


def no_compiler() -> str | None:
    """Why the default backend cannot run here, or None."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError) as error:
        return f"the default backend needs a C++ compiler: {type(error).__name__}"
    return None


def terms(*weights: float) -> list[Term]:
    made = [
        Term(ChannelWise(), student="3", teacher="3"),
        Term(PixelWise(), student="output", teacher="output"),
        Term(FeatureMimic(), student="1", teacher="1"),
    ][: len(weights)]
    for term, weight in zip(made, weights, strict=True):
        term.weight = weight
    return made


class TestDefaultBackend:
    """It may give two outputs of equal value one tensor, and with one term the loss is that term."""

    @pytest.fixture(autouse=True)
    def compiler(self) -> None:
        if (reason := no_compiler()) is not None:
            pytest.skip(reason)
        torch._dynamo.reset()

    @staticmethod
    def pair(*weights: float) -> tuple[Distiller, Distiller]:
        torch.manual_seed(0)
        distiller = Distiller(network(4), network(8), terms(*weights), images())
        return distiller, copy.deepcopy(distiller)

    @staticmethod
    def assert_same_gradients(distiller: Distiller, plain: Distiller) -> None:
        for (name, p), q in zip(distiller.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)

    @pytest.mark.parametrize(
        "weights", [(1.0,), (3.0,), (0.5,), (0.0,), (3.0, 0.0), (1.0, 1.0), (1.0, 0.5, 2.0)], ids=str
    )
    def test_loss_keeps_its_gradient(self, weights: tuple[float, ...]) -> None:
        distiller, plain = self.pair(*weights)
        got, expected = torch.compile(distiller, fullgraph=True)(images()), plain(images())
        assert got.loss.requires_grad
        assert not any(part.requires_grad for part in got.parts.values())
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        got.loss.backward()
        expected.loss.backward()
        self.assert_same_gradients(distiller, plain)

    def test_reported_values_are_memory_of_their_own(self) -> None:
        distiller, _ = self.pair(1.0)
        out = torch.compile(distiller)(images())
        (part,) = out.parts.values()
        assert part.data_ptr() != out.loss.data_ptr()
        value = part.item()
        out.loss.detach().zero_()
        assert part.item() == value

    @pytest.mark.parametrize("inside", [False, True])
    @pytest.mark.parametrize("weight", [1.0, 3.0])
    def test_task_loss_inside_and_outside(self, inside: bool, weight: float) -> None:
        distiller, plain = self.pair(weight)
        labels = torch.randint(5, (2, 16, 16), generator=torch.Generator().manual_seed(2))

        def step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            out = model(x)
            task = F.cross_entropy(out.student, y)
            return task + out.loss, task.detach(), out.parts

        if inside:
            got = torch.compile(lambda x, y: step(distiller, x, y), fullgraph=True)(images(), labels)
        else:
            got = step(torch.compile(distiller), images(), labels)
        expected = step(plain, images(), labels)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        got[0].backward()
        expected[0].backward()
        self.assert_same_gradients(distiller, plain)
