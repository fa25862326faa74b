"""INT8 by onnxruntime's static quantisation, and what it costs in mIoU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from densekd.data.base import SegmentationSet
from densekd.data.build import DataBundle
from densekd.errors import ExportError
from densekd.evaluate import spread
from densekd.export.feed import Feed
from densekd.export.manifest import INPUT, KEY, Manifest, Quantised
from densekd.export.onnx_file import open_onnx
from densekd.export.options import Int8Options
from densekd.export.score import score_file
from densekd.export.sizes import plain
from densekd.export.watching import Watching
from densekd.tasks.segmentation import SegmentationTask

# What onnxruntime has fast integer forms of, and what passes integers on. The up-sampling of the logits, softmax and
# argmax stay in float32: ties between 256 values would decide over classes.
_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Concat", "Relu", "Clip", "MaxPool", "AveragePool")


class CalibrationImages:
    """What onnxruntime's calibration reads: images of the training split, one at a time, always the same ones."""

    def __init__(self, source: SegmentationSet, manifest: Manifest, count: int, watch: Watching) -> None:
        self._source, self._feed, self._watch = source, Feed(manifest), watch
        self._indices = spread(len(source), count)
        self._next = 0

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> CalibrationImages:
        return self

    def __next__(self) -> dict[str, Any]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found

    def get_next(self) -> dict[str, Any] | None:
        """The next image, as onnxruntime asks for it; None at the end."""
        self._watch.counting("calibrating", self._next, len(self._indices))
        if self._next == len(self._indices):
            return None
        image = self._source.load(self._indices[self._next]).image
        self._next += 1
        return {INPUT: self._feed(image)[None].contiguous().numpy()}


def quantise(
    source: Path,
    target: Path,
    manifest: Manifest,
    data: DataBundle,
    task: SegmentationTask,
    options: Int8Options,
    watch: Watching,
) -> Quantised:
    """Write the INT8 form of a verified float32 file, and measure both.

    QDQ form; weights per channel; value ranges by their least and largest values on the calibration images.

    Args:
        source: the float32 file.
        target: the file to write, still without its final manifest.
        manifest: of `source`.

    Raises:
        ExportError: onnxruntime cannot quantise it, or mIoU falls by more than `options.max_drop`.
    """
    images = CalibrationImages(data.train, manifest, options.calibration, watch)
    try:
        with _quiet():
            _quantise(source, target, images)
    except Exception as error:  # onnxruntime has a class of its own for every reason
        raise ExportError(f"onnxruntime cannot quantise it: {type(error).__name__}: {plain(str(error))}") from error
    write_manifest(target, manifest)
    before, after = (
        score_file(open_onnx(path, "cpu", None), data.val, task, options.score, partial(watch.counting, words))
        for path, words in ((source, "scoring float32"), (target, "scoring INT8"))
    )
    made = Quantised(
        calibration_images=len(images),
        miou_before=before.miou,
        miou_after=after.miou,
        images=after.images,
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
    )
    if before.miou - after.miou > options.max_drop:
        raise ExportError(
            f"INT8 costs {100 * (before.miou - after.miou):.2f} points of mIoU ({100 * before.miou:.2f} to "
            f"{100 * after.miou:.2f} on {after.images} validation images), more than --max-drop "
            f"{100 * options.max_drop:g}; nothing was written. Try more images (--calibration), allow more "
            "(--max-drop), or export in float32"
        )
    return made


def _quantise(source: Path, target: Path, images: CalibrationImages) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(f"{target.name}.prepared")
    try:
        # Batch norms are folded into convolutions first; the shapes are known from the exporter.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            images,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    finally:
        prepared.unlink(missing_ok=True)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put a manifest into an ONNX file in the place of any other."""
    import onnx

    proto = onnx.load(path)
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, manifest.text()
    path.write_bytes(proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser warns through the root logger, of a step that has been taken."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
