from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from densekd.cli.app import call
from densekd.cli.export import _rows
from densekd.errors import ArgumentError, ExportError, RunError, ShapeError
from densekd.export import Int8Options, Manifest, export_run, load_exported
from densekd.export.blame import described, size_dependent
from densekd.export.exported import check_images
from densekd.export.extras import require_export
from densekd.export.feed import Feed
from densekd.export.graph import Graph
from densekd.export.make import _resized
from densekd.export.manifest import (
    InputInfo,
    InsideInfo,
    NetworkInfo,
    Quantised,
    Source,
    Verified,
    read_manifest,
)
from densekd.export.onnx_file import session_of
from densekd.export.options import GraphOptions
from densekd.export.pooling import pooled_to_places
from densekd.export.pt2_file import open_pt2
from densekd.export.score import class_ids
from densekd.export.sizes import accepted_sizes, other_sizes, plain
from densekd.export.verify import Comparison, WrongExportError, compare
from densekd.export.writing import OnnxGraph, _module_of
from densekd.records.run import BestScores
from exportkit import NAMES, make_run

SCORES = BestScores(miou=0.5, pixel_accuracy=0.6, iou={"a": 0.5, "b": None}, images=4, step=9)


def manifest(**changes) -> Manifest:
    """A manifest of two classes; `input__size=...` changes a key inside."""
    values = {
        "format": "onnx",
        "classes": ("a", "b"),
        "network": NetworkInfo(model="smp:Unet"),
        "input": InputInfo(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        "source": Source(
            run="r", seed=0, method="none", student_sha256="0" * 64, recipe_sha256="1" * 64, split="val", scores=SCORES
        ),
    }
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        values[part] = values[part].model_copy(update={inner: value}) if inner else value
    return Manifest(**values)


class TestManifest:
    def test_it_comes_back_from_its_text(self):
        one = manifest(input__size=(96, 128), palette=((1, 2, 3), (4, 5, 6)))
        assert read_manifest(one.text(), "x") == one
        assert json.loads(one.text())["schema"] == 1

    @pytest.mark.parametrize("text", [None, ""])
    def test_none(self, text):
        with pytest.raises(ExportError, match=r"x\.onnx: holds no manifest of densekd"):
            read_manifest(text, "x.onnx")

    def test_another_schema_is_named(self):
        with pytest.raises(ExportError, match=r"x\.onnx: its manifest is not of schema 1: schema"):
            read_manifest(manifest().text().replace('"schema":1', '"schema":2'), "x.onnx")

    def test_outputs(self):
        assert manifest().outputs == 2
        assert manifest(binary=True).outputs == 1


class TestImagesThatGoIn:
    @pytest.mark.parametrize(
        ("changes", "shape", "words"),
        [
            ({}, (3, 4, 4), r"expected images float32 \(N, 3, H, W\), got float32 \(3, 4, 4\)"),
            ({}, (1, 1, 4, 4), r"got float32 \(1, 1, 4, 4\)"),
            ({"input__size": (4, 6)}, (1, 3, 6, 4), r"takes images of 4x6 \(height x width\) alone, got 6x4"),
            ({"input__multiple_of": 4}, (1, 3, 8, 6), r"multiples of 4, got 8x6"),
            ({"input__batch": 2}, (1, 3, 4, 4), r"batches of 2, got 1"),
        ],
    )
    def test_others_are_refused(self, changes, shape, words):
        with pytest.raises(ShapeError, match=words):
            check_images(torch.zeros(shape), manifest(**changes), "x.onnx")

    def test_bytes_are_refused(self):
        with pytest.raises(ShapeError, match="got uint8"):
            check_images(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), manifest(), "x.onnx")

    def test_right_ones_pass(self):
        check_images(torch.zeros(5, 3, 8, 4), manifest(input__multiple_of=4), "x.onnx")


class TestFeed:
    def test_normalised_padded_with_the_mean_colour(self):
        image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
        found = Feed(manifest(input__multiple_of=4))(image)
        assert found.shape == (3, 8, 8)
        torch.testing.assert_close(found[:, :5, :7], (image / 255 - 0.5) / 0.25)
        assert not found[:, 5:].any()
        assert not found[:, :, 7:].any()

    def test_plain_pixels(self):
        image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
        found = Feed(manifest(input__multiple_of=4, input__values="0..255"))(image)
        assert torch.equal(found[:, :5, :7], image.float())
        assert (found[:, 5:] == 127.5).all()

    def test_sizes(self):
        shown = manifest().evaluated.model_copy(update={"size": (6, 9)})
        assert Feed(manifest(evaluated=shown)).size_of((20, 20)) == (6, 9)
        assert Feed(manifest(evaluated=shown, input__size=(4, 4))).size_of((20, 20)) == (4, 4)
        inside = InsideInfo(resize=(6, 9))
        assert Feed(manifest(evaluated=shown, inside=inside)).size_of((20, 20)) == (20, 20)

    def test_the_part_over_the_image(self):
        assert Feed(manifest()).cut(torch.zeros(1, 2, 8, 8), (5, 7)).shape == (1, 2, 5, 7)

    def test_an_image_of_8_bits_to_one_pixel(self):
        image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
        found = Feed(manifest(input__size=(1, 1), input__values="0..255"))(image)
        assert torch.allclose(found.flatten(), torch.tensor([7.5, 23.5, 39.5]))
        assert torch.allclose(_resized(image, (1, 1)).flatten(), torch.tensor([7.5, 23.5, 39.5]))


class TestClassIds:
    def test_logits_are_enlarged_before_the_class_is_chosen(self):
        logits = torch.tensor([[[[0.0, 4.0]], [[1.0, 0.0]]]])
        expected = F.interpolate(logits, (1, 8), mode="bilinear").argmax(1)
        assert torch.equal(class_ids(logits, (1, 8), manifest()), expected)
        assert expected[0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]

    def test_one_logit(self):
        logits = torch.tensor([[[[-0.1, 0.1]]]])
        assert class_ids(logits, (1, 2), manifest(binary=True)).tolist() == [[[0, 1]]]
        soft = manifest(binary=True, inside=InsideInfo(output="softmax"))
        assert class_ids(logits.sigmoid(), (1, 2), soft).tolist() == [[[0, 1]]]

    def test_ids_are_repeated(self):
        ids = torch.tensor([[[3, 1]]])
        found = class_ids(ids, (2, 4), manifest(inside=InsideInfo(output="argmax")))
        assert found.tolist() == [[[3, 3, 1, 1], [3, 3, 1, 1]]]


def graph(network: nn.Module, *, size=None, resize=None, normalise=False, output="logits", binary=False, multiple=1):
    given = InputInfo(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1), size=size)
    inside = InsideInfo(normalise=normalise, resize=resize, output=output)
    return Graph(network, given, inside, binary=binary, multiple=multiple, always=False)


class TestGraph:
    def test_normalisation_resize_and_enlargement(self):
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        pixels = torch.rand(2, 3, 9, 13) * 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1)))
        small = F.interpolate(pixels, (6, 8), mode="bilinear", antialias=True)
        expected = F.interpolate(network((small / 255 - mean) / std), (9, 13), mode="bilinear")
        found = graph(network, resize=(6, 8), normalise=True)(pixels)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            graph(network, resize=(6, 8), normalise=True, output="softmax")(pixels), expected.softmax(1)
        )
        ids = graph(network, resize=(6, 8), normalise=True, output="argmax")(pixels)
        assert ids.dtype == torch.int64
        assert torch.equal(ids, expected.argmax(1))

    def test_one_logit(self):
        network, images = nn.Conv2d(3, 1, 1), torch.randn(2, 3, 4, 5)
        logits = network(images)
        torch.testing.assert_close(graph(network, output="softmax", binary=True)(images), logits.sigmoid())
        assert torch.equal(graph(network, output="argmax", binary=True)(images), (logits[:, 0] > 0).long())

    def test_a_fixed_size_is_padded_to_what_the_network_needs(self):
        network, images = nn.Conv2d(3, 2, 3, padding=1), torch.randn(1, 3, 5, 7)
        expected = network(F.pad(images, (0, 1, 0, 3)))[..., :5, :7]
        assert torch.equal(graph(network, size=(5, 7), multiple=8)(images), expected)

    @pytest.mark.parametrize("form", [lambda y: {"out": y}, lambda y: (y, y * 0)])
    def test_outputs_of_libraries(self, form):
        class Wrapped(nn.Module):
            def forward(self, x):
                return form(x)

        images = torch.randn(1, 3, 4, 4)
        assert torch.equal(graph(Wrapped())(images), images)


class TestSizes:
    @given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, 2, 8, 32]))
    @settings(max_examples=30, deadline=None)
    def test_others_differ_and_are_odd_multiples(self, height, width, multiple):
        base = (height * multiple, width * multiple)
        others = other_sizes(base, multiple)
        assert len(set(others)) == 3
        for size in others:
            assert size[0] != base[0]
            assert size[1] != base[1]
            assert all(side // multiple % 2 == 1 and side % multiple == 0 for side in size)

    def test_the_multiple_is_found(self):
        class Halves(nn.Module):
            def forward(self, x):
                if x.shape[-1] % 4 or x.shape[-2] % 4:
                    raise RuntimeError("sizes do not match")
                return x

        found = accepted_sizes(Halves(), (10, 12), 1)
        assert (found.multiple, found.base, found.same) == (4, (12, 12), True)

    def test_one_size_alone(self):
        class Fixed(nn.Module):
            def forward(self, x):
                return x + torch.zeros(10, 12)

        with pytest.raises(ExportError, match=r"takes images of 10x12 but of no other size.*must match"):
            accepted_sizes(Fixed(), (10, 12), 1)

    def test_a_smaller_map_is_seen(self):
        assert not accepted_sizes(nn.Conv2d(3, 2, 3, stride=2, padding=1), (10, 12), 1).same


class TestComparison:
    LOGITS = torch.tensor([[[[2.0, 1.0, 0.5]], [[0.0, 1.0, 3.0]]]])

    def add(self, found, kind="logits", binary=False, logits=None) -> Comparison:
        logits = self.LOGITS if logits is None else logits
        comparison = Comparison(kind, binary)
        expected = {"logits": logits, "softmax": logits.softmax(1), "argmax": logits.argmax(1)}[kind]
        comparison.add(found, expected, logits, (1, 3))
        return comparison

    def test_equal(self):
        found = self.add(self.LOGITS.clone())
        assert (found.error, found.pixels, found.undecided, found.different) == (0, 3, 1, 0)
        assert (found.sizes, found.batches) == ([(1, 3)], [1])

    def test_a_tie_may_fall_either_way_and_is_counted(self):
        other = self.LOGITS.clone()
        other[0, 1, 0, 1] += 1e-5
        found = self.add(other)
        assert (found.undecided, found.different) == (1, 1)
        assert found.verified(1, "one", "me").max_abs_error == pytest.approx(1e-5, rel=0.1)

    @pytest.mark.parametrize("by", [1e-3, float("nan")])
    def test_more_than_rounding(self, by):
        with pytest.raises(WrongExportError, match=r"1x3 its logits differ from torch's by") as caught:
            self.add(self.LOGITS + by)
        assert caught.value.size == (1, 3)

    def test_another_class(self):
        ids = self.LOGITS.argmax(1)
        assert self.add(ids.clone(), "argmax").verified(1, "one", "me").max_abs_error is None
        with pytest.raises(WrongExportError, match="another class than torch at 2 of 3"):
            self.add(1 - ids, "argmax")

    def test_another_shape(self):
        with pytest.raises(WrongExportError, match=r"gives float32 \(1, 2, 1, 2\), torch float32 \(1, 2, 1, 3\)"):
            self.add(self.LOGITS[..., :2])

    def test_every_image_batch_and_size_is_compared(self):
        seen: list[tuple[int, ...]] = []

        class Counting:
            path, manifest = Path("x"), manifest()

            def __call__(self, images):
                seen.append(tuple(images.shape))
                return torch.cat([images.mean(1, keepdim=True)] * 2, 1)

        class Mean(nn.Module):
            def forward(self, x):
                return torch.cat([x.mean(1, keepdim=True)] * 2, 1)

        images = [torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8) for _ in range(2)]
        compare(graph(Mean()), Counting(), images, [(5, 3)])
        assert seen == [(1, 3, 4, 6), (1, 3, 4, 6), (2, 3, 4, 6), (3, 3, 4, 6), (2, 3, 5, 3)]


class TestBlame:
    def test_known_kinds(self):
        network = nn.ModuleDict(
            {"a": nn.AdaptiveAvgPool2d(1), "b": nn.AdaptiveAvgPool2d(2), "c": nn.AdaptiveMaxPool2d(3)}
        )
        assert size_dependent(network) == ["b", "c"]
        assert described(network, ["b"]) == "b (AdaptiveAvgPool2d)"
        assert described(network, ["a", "b", "c"]) == "a (AdaptiveAvgPool2d; 1 more of its kind)"

    def test_pooling_to_places_is_found_by_running_it(self):
        network = nn.Sequential()
        for name, made in {
            "by_factor": nn.AvgPool2d(2),
            "several": nn.AdaptiveAvgPool2d(2),
            "after_it": nn.AdaptiveMaxPool2d((2, 1)),
        }.items():
            network.add_module(name, made)
        # What comes to `after_it` has one size whatever the images have.
        assert pooled_to_places(network, (16, 24), (20, 36)) == ["several"]
        assert pooled_to_places(network, (16, 24), (16, 24)) == []

    @pytest.mark.parametrize(
        ("pool", "found"),
        [
            (lambda x: F.adaptive_avg_pool2d(x, 3), ["inner"]),
            (lambda x: F.adaptive_max_pool2d(x, (2, 2)), ["inner"]),
            (lambda x: F.adaptive_avg_pool2d(x, (1, 3)), ["inner"]),
            (lambda x: F.adaptive_avg_pool2d(x, 1), []),
            (lambda x: F.adaptive_avg_pool2d(x, (None, 1)), []),
            (lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)), []),
            (lambda x: F.adaptive_avg_pool2d(x, 3) if x.shape[2] > 16 else x, []),
        ],
    )
    def test_also_without_a_module_for_it(self, pool, found):
        class Inner(nn.Module):
            def forward(self, x):
                return pool(nn.functional.relu(x))

        network = nn.ModuleDict({"inner": Inner(), "twice": nn.Identity()})
        network.forward = lambda x: network["inner"](network["twice"](x))
        assert pooled_to_places(network, (16, 24), (20, 36)) == found
        assert all(not one._forward_hooks and not one._forward_pre_hooks for one in network.modules())

    def test_hooks_are_removed_where_the_network_fails(self):
        network = nn.Sequential(nn.Conv2d(4, 1, 1))
        with pytest.raises(RuntimeError):
            pooled_to_places(network, (16, 24), (20, 36))
        assert all(not one._forward_hooks and not one._forward_pre_hooks for one in network.modules())

    def test_nothing_is_traced_for_a_refusal(self, tmp_path, monkeypatch):
        monkeypatch.setattr("densekd.export.run.require_export", lambda *_: None)
        monkeypatch.setattr("densekd.export.make.traced", lambda *_, **__: pytest.fail("traced"))
        run = make_run(tmp_path / "run", "nets:pooled")
        words = (
            r"its module pool \(AdaptiveAvgPool2d\) would be right at one size alone\. ONNX has no operator for it.*"
            r"--to onnx --size 32 48`, or let the file resize images of any size: .*--to onnx --resize 32 48`"
        )
        with pytest.raises(ExportError, match=words):
            export_run(run, "onnx", out=tmp_path / "a.onnx")
        assert not (tmp_path / "a.onnx").exists()

    def test_the_module_of_a_node(self):
        assert _module_of("['', 'network', 'network.decoder', 'network.decoder.pool', 'mean_2']") == "decoder.pool"
        assert _module_of("['', 'network', 'add']") == ""
        assert _module_of("") == ""

    def test_codes_and_colours_of_onnxruntime_are_left_out(self):
        assert (
            plain("\x1b[1;31m[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero\n status\x1b[m") == "Non-zero status"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"size": (0, 3)}, "size: expected height and width of 1 or more"),
            ({"resize": (4,)}, "resize: expected height and width"),
            ({"output": "softmin"}, "did you mean 'softmax'"),
            ({"images": 0}, "images: expected 1 or more"),
        ],
    )
    def test_options(self, options, words):
        with pytest.raises(ArgumentError, match=words):
            GraphOptions(**options)

    @pytest.mark.parametrize("options", [{"calibration": 0}, {"max_drop": -0.1}, {"score": 0}])
    def test_options_of_int8(self, options):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            Int8Options(**options)

    def test_missing_packages_are_named_with_the_command(self):
        with pytest.raises(ExportError, match=r'no_such_thing is not installed: pip install "densekd\[export\]"'):
            require_export("json", "no_such_thing")

    @pytest.mark.parametrize(
        ("path", "options", "words"),
        [
            ("gone.onnx", {}, r"gone\.onnx: no such file"),
            ("a.txt", {}, r"a\.txt: expected"),
            ("a.onnx", {"device": "tpu"}, "expected cpu or cuda"),
            ("a.onnx", {"threads": 0}, "threads: expected 1 or more"),
        ],
    )
    def test_opening(self, tmp_path, path, options, words):
        for name in ("a.txt", "a.onnx"):
            (tmp_path / name).write_text("x")
        with pytest.raises(ExportError, match=words):
            load_exported(tmp_path / path, **options)

    def test_a_pt2_file_that_would_be_unpickled(self, tmp_path):
        def written(**entries: bytes) -> Path:
            path = tmp_path / "a.pt2"
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in {"extra/densekd.json": manifest(format="pt2").text().encode(), **entries}.items():
                    archive.writestr(f"archive/{name}", data)
            return path

        pickled = io.BytesIO()
        torch.save(Path("anything"), pickled)
        pickled_weight = json.dumps({"config": {"w": {"use_pickle": True}}}).encode()
        for entries, words in (
            ({"archive_format": b"pt2", "data/sample_inputs/model.pt": pickled.getvalue()}, "sample inputs"),
            (
                {"archive_format": b"pt2", "data/weights/model_weights_config.json": pickled_weight},
                "'w' in it can only",
            ),
            ({"archive_format": b"pt2", "data/constants/custom_obj_0": b""}, "custom_obj_0.*does not write"),
            ({"archive_format": b"zip"}, "not a file of torch.export"),
        ):
            with pytest.raises(ExportError, match=words):
                open_pt2(written(**entries), "cpu", None)
        (tmp_path / "a.pt2").write_text("nothing")
        with pytest.raises(ExportError, match="cannot be read as a pt2 file"):
            open_pt2(tmp_path / "a.pt2", "cpu", None)

    def test_what_is_there_is_not_overwritten(self, tmp_path):
        run = make_run(tmp_path / "run", "nets:strided")
        (tmp_path / "a.pt2").write_text("mine")
        with pytest.raises(RunError, match=r"a\.pt2: exists; it is never overwritten unasked\. Use --force"):
            export_run(run, "pt2", out=tmp_path / "a.pt2")
        with pytest.raises(ArgumentError, match=r"expected a name that ends in \.pt2"):
            export_run(run, "pt2", out=tmp_path / "a.onnx")
        with pytest.raises(ArgumentError, match="did you mean 'onnx'"):
            export_run(run, "onxx")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="--int8 belongs to --to onnx"):
            export_run(run, "pt2", int8=Int8Options())
        assert (tmp_path / "a.pt2").read_text() == "mine"

    def test_the_command_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            call(["export", str(tmp_path), "--calibration", "3"])
        assert ended.value.code == 2
        assert "--calibration belongs to --int8" in capsys.readouterr().err

    def test_a_network_of_one_size_names_the_command(self, tmp_path):
        run = make_run(tmp_path / "run", "nets:one_size")
        with pytest.raises(ExportError, match=r"of no other size.*`densekd export .*run --to pt2 --size 32 48`"):
            export_run(run, "pt2", out=tmp_path / "a.pt2")
        assert not (tmp_path / "a.pt2").exists()


class TestTable:
    def test_what_it_says(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"12345")
        one = manifest(input__multiple_of=32, inside=InsideInfo(resize=(4, 6), output="argmax"))
        told = {row["export"]: row["value"] for row in _rows(tmp_path / "a.onnx", one)}
        assert told["bytes"] == 5
        assert told["input"] == "(N, 3, H, W) RGB, sides that are multiples of 32, normalised"
        assert told["resized inside"] == "4x6"
        assert told["output"] == "argmax, 2 classes"
        assert "max abs error" not in told

    def test_what_was_compared_before_int8_says_so(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"12345")
        checked = Verified(max_abs_error=1e-6, argmax_agreement=1.0, images=2, sizes=[(4, 6)])
        made = Quantised(calibration_images=2, miou_before=0.5, miou_after=0.4, images=3, bytes_before=9, bytes_after=5)
        for int8, name in ((made, "before INT8: argmax agreement"), (None, "argmax agreement")):
            rows = _rows(tmp_path / "a.onnx", manifest(verified=checked, int8=int8))
            assert [row["value"] for row in rows if row["export"] == name] == [1.0]


@pytest.fixture(scope="module")
def strided(tmp_path_factory):
    """A run and its ONNX file of images of any size."""
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    pytest.importorskip("onnxscript", reason="needs the extra export")
    folder = tmp_path_factory.mktemp("export")
    run = make_run(folder / "run", "nets:strided")
    return run, export_run(run, "onnx", out=folder / "a.onnx")


@pytest.mark.slow
class TestOnnx:
    @pytest.mark.parametrize("shape", [(1, 32, 48), (5, 19, 33), (2, 64, 20)])
    def test_any_batch_and_size(self, strided, shape):
        run, file = strided
        images = torch.randn(shape[0], 3, *shape[1:])
        with torch.no_grad():
            logits = run.student()(images)
        expected = F.interpolate(logits, shape[1:], mode="bilinear")
        torch.testing.assert_close(file(images), expected, rtol=1e-4, atol=1e-5)

    def test_what_it_says_of_itself(self, strided):
        file = strided[1]
        said = load_exported(file.path, threads=1).manifest
        assert said == file.manifest
        assert said.classes == NAMES
        assert said.source.student_sha256 == file.manifest.source.student_sha256
        assert (said.source.run, said.source.seed, said.source.scores.miou) == ("run", 3, 0.5)
        assert said.verified.argmax_agreement == 1.0
        assert 0 < said.verified.max_abs_error < 1e-4
        assert said.verified.of == "6 of the run's 6 validation images"
        assert said.verified.batches == [1, 2, 3]
        assert len(said.verified.sizes) == 4
        assert {height % 2 for height, _ in said.verified.sizes[1:]} == {1}
        assert [axis if isinstance(axis, str) else int(axis) for axis in file.session.get_inputs()[0].shape] == [
            "batch", 3, "height", "width",
        ]  # fmt: skip
        assert file.session.get_outputs()[0].shape[1] == len(NAMES)

    def test_nothing_of_this_machine_is_in_it(self, strided):
        run, file = strided
        data = file.path.read_bytes()
        assert str(run.path.parent).encode() not in data
        assert str(Path(torch.__file__).parent).encode() not in data

    def test_int8(self, strided, tmp_path):
        run, file = strided
        made = export_run(run, "onnx", out=tmp_path / "a.onnx", int8=Int8Options(calibration=4, max_drop=1.0))
        found = made.manifest.int8
        assert (found.calibration_images, found.images) == (4, 6)
        assert found.bytes_before != found.bytes_after == made.path.stat().st_size
        assert 0 < found.miou_before < 1
        assert b"QuantizeLinear" in made.path.read_bytes()
        images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))  # some beyond the range seen
        assert 0 < (made(images) - file(images)).abs().mean() < 0.1 * file(images).abs().mean()
        assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]

    def test_int8_that_costs_too_much_leaves_no_file(self, strided, tmp_path, monkeypatch):
        def ruined(file, source, task, count, watch):
            from densekd.records import Scores

            miou = 0.2 if b"QuantizeLinear" in file.path.read_bytes() else 0.5
            return Scores(miou=miou, pixel_accuracy=0.5, iou={}, images=6)

        monkeypatch.setattr("densekd.export.int8.score_file", ruined)
        with pytest.raises(ExportError, match=r"INT8 costs 30\.00 points of mIoU .* more than --max-drop 1"):
            export_run(strided[0], "onnx", out=tmp_path / "a.onnx", int8=Int8Options(calibration=2))
        assert not list(tmp_path.iterdir())

    def test_a_wrong_file_is_not_left(self, strided, tmp_path, monkeypatch):
        import onnx

        save = OnnxGraph.save

        def damaged(self, path, said):
            for tensor in self.proto.graph.initializer:
                if tensor.name.endswith("head.weight"):
                    values = onnx.numpy_helper.to_array(tensor) * 1.01
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            save(self, path, said)

        monkeypatch.setattr(OnnxGraph, "save", damaged)
        with pytest.raises(ExportError, match=r"wrong and was removed: .*its logits differ from torch's by"):
            export_run(strided[0], "onnx", out=tmp_path / "a.onnx")
        assert not list(tmp_path.iterdir())

    def test_a_file_of_somebody_else(self, strided, tmp_path):
        import onnx

        proto = onnx.load(strided[1].path)
        del proto.metadata_props[:]
        onnx.save(proto, tmp_path / "a.onnx")
        with pytest.raises(ExportError, match="no manifest"):
            load_exported(tmp_path / "a.onnx")
        (tmp_path / "b.onnx").write_bytes(b"nothing")
        with pytest.raises(ExportError, match="onnxruntime cannot open it"):
            load_exported(tmp_path / "b.onnx")

    def test_cuda_that_is_not_there(self, strided):
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("onnxruntime has CUDA here")
        with pytest.raises(ExportError, match="install onnxruntime-gpu"):
            session_of(strided[1].path, "cuda")

    def test_options_inside_the_graph(self, strided, tmp_path):
        run = make_run(tmp_path / "run", "nets:strided", binary=True)
        options = {"resize": (20, 28), "normalise": True}
        soft = export_run(run, "onnx", out=tmp_path / "soft.onnx", output="softmax", **options)
        pixels = torch.rand(2, 3, 33, 41) * 255
        mean, std = (
            torch.tensor(value).view(1, 3, 1, 1) for value in (soft.manifest.input.mean, soft.manifest.input.std)
        )
        small = F.interpolate(pixels, (20, 28), mode="bilinear", antialias=True)
        with torch.no_grad():
            logits = F.interpolate(run.student()((small / 255 - mean) / std), (33, 41), mode="bilinear")
        torch.testing.assert_close(soft(pixels), logits.sigmoid(), rtol=1e-4, atol=1e-5)
        assert soft.manifest.input.values == "0..255"

    def test_pooling_to_fixed_places_is_named(self, strided, tmp_path, monkeypatch):
        run = make_run(tmp_path / "run", "nets:pooled")
        words = r"its module pool \(AdaptiveAvgPool2d\) would be right at one size alone.*--to onnx --size 32 48`"
        monkeypatch.setattr("densekd.export.make.pooled_to_places", lambda *_: [])  # the file itself is looked at too
        with pytest.raises(ExportError, match=words):
            export_run(run, "onnx", out=tmp_path / "a.onnx")
        assert not (tmp_path / "a.onnx").exists()
        monkeypatch.undo()
        fixed = export_run(run, "onnx", out=tmp_path / "a.onnx", size=(24, 36))
        assert fixed.manifest.input.size == (24, 36)
        assert fixed.manifest.verified.sizes == [(24, 36)]
        with pytest.raises(ShapeError, match="24x36"):
            fixed(torch.zeros(1, 3, 32, 48))


@pytest.mark.slow
class TestPt2:
    def test_pooling_is_right_at_any_size_here(self, tmp_path):
        run = make_run(tmp_path / "run", "nets:pooled")
        made = export_run(run, "pt2", out=tmp_path / "a.pt2")
        images = torch.randn(2, 3, 21, 57)
        with torch.no_grad():
            expected = run.student()(images)
        threads = torch.get_num_threads()
        torch.testing.assert_close(load_exported(made.path, threads=1)(images), expected)
        assert torch.get_num_threads() == threads
        assert made.manifest.input.size is None
        assert str(tmp_path).encode() not in made.path.read_bytes()

    def test_weights_that_nothing_reads_are_left_out(self, tmp_path):
        run = make_run(tmp_path / "run", "nets:wasteful")
        made = export_run(run, "pt2", out=tmp_path / "a.pt2", output="argmax", images=2)
        assert made.path.stat().st_size < run.weights.stat().st_size / 3  # the graph's own text is some 40 kB
        assert made(torch.zeros(1, 3, 32, 48)).dtype == torch.int64


LIBRARIES = {
    "fpn": ("smp:FPN", {"encoder_name": "resnet18", "encoder_weights": None, "size": (64, 96)}, 32),
    "unet": (
        "smp:Unet",
        {"encoder_name": "resnet18", "encoder_weights": None, "encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        1,
    ),
    "deeplab": ("smp:DeepLabV3Plus", {"encoder_name": "resnet18", "encoder_weights": None, "size": (64, 96)}, 16),
    "lraspp": ("torchvision:lraspp_mobilenet_v3_large", {"size": (64, 96)}, 1),
    "segformer": (
        "transformers:SegformerForSemanticSegmentation",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16, "size": (64, 96)},
        1,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", LIBRARIES)
def test_networks_of_libraries_take_any_size(name, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    model, options, multiple = LIBRARIES[name]
    run = make_run(tmp_path / "run", model, **options)
    made = export_run(run, "onnx", out=tmp_path / "a.onnx", images=2)
    assert made.manifest.input.size is None
    assert made.manifest.input.multiple_of == multiple
    assert len(made.manifest.verified.sizes) == 4


@pytest.mark.slow
def test_psp_names_its_pooling(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    run = make_run(
        tmp_path / "run", "smp:PSPNet", encoder_name="resnet18", encoder_weights=None, psp_out_channels=16,
        size=(64, 96),
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"decoder\.psp\.blocks\.1\.pool\.0 \(AdaptiveAvgPool2d; 2 more of its kind"):
        export_run(run, "onnx", out=tmp_path / "a.onnx", images=2)
    assert not (tmp_path / "a.onnx").exists()
    assert export_run(run, "onnx", out=tmp_path / "a.onnx", images=2, size=(64, 96)).manifest.input.size == (64, 96)
