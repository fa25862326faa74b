"""An overlay video: the frames with their colours, at the video's own size and pace, above a legend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from densekd import files
from densekd.errors import ArgumentError
from densekd.pictures import Palette, legend, overlay
from densekd.predict.video import Video, require_av

_LARGEST_TEXT, _SMALLEST_TEXT = 90, 9
_PAPER = 255


class Encoder(NamedTuple):
    """What PyAV writes videos with: its name there, the ending and the name of the format, and its options."""

    name: str
    suffix: str
    format: str
    options: dict[str, str]


_ENCODERS = (
    Encoder("libx264", ".mp4", "mp4", {"crf": "18", "preset": "veryfast"}),
    Encoder("libopenh264", ".mp4", "mp4", {}),
    Encoder("libvpx-vp9", ".webm", "webm", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
)


def find_encoder() -> Encoder:
    """The first of h264 and vp9 that this PyAV has.

    Raises:
        ArgumentError: PyAV is missing, or has neither.
    """
    require_av()
    import av

    for encoder in _ENCODERS:
        if encoder.name in av.codecs_available:
            try:
                av.codec.Codec(encoder.name, "w")
            except av.codec.codec.UnknownCodecError:
                continue
            return encoder
    raise ArgumentError(
        "this PyAV writes neither h264 nor vp9, so no overlay video can be made; install PyAV's own wheel "
        "(pip install --force-reinstall av), or ask for --no-overlays"
    )


class Film:
    """An overlay video that is being written; it has a temporary name until `finish` gives it one.

    The frames keep their size, times and pixel shape. The legend of all classes stands below them where it takes half
    their height at most; `below` says whether it does. A width or height that is odd gets one white pixel more, which
    h264 and vp9 need.

    Args:
        path: of the whole video, with the encoder's suffix; its folder is made.
        video: what the frames are of.
        classes, palette: of the legend.
        alpha: strength of the colours, 0 to 1.
        encoder: of `find_encoder`.
    """

    def __init__(
        self, path: Path, video: Video, classes: Sequence[str], palette: Palette, alpha: float, encoder: Encoder
    ) -> None:
        import av

        self.path, self.video, self.palette, self.alpha = path, video, palette, alpha
        self.frames = 0
        key = key_of(classes, palette, video.width, video.height // 2)
        self.below = key is not None
        tall = video.height + (0 if key is None else key.height)
        self._canvas = np.full((tall + tall % 2, video.width + video.width % 2, 3), _PAPER, np.uint8)
        if key is not None:
            self._canvas[video.height : tall, : video.width] = np.asarray(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = files.temporary_name(path)
        self._container = av.open(str(self._temporary), "w", format=encoder.format)
        self._stream = _stream(self._container, video, self._canvas, encoder)
        self._last = -1

    def add(self, image: Tensor, label: Tensor, pts: int | None) -> None:
        """Add a frame: uint8 `(3, H, W)`, its class ids `(H, W)`, and its time in the video's own units."""
        import av

        height, width = label.shape
        self._canvas[:height, :width] = np.asarray(overlay(image, label, self.palette, self.alpha))
        frame = av.VideoFrame.from_ndarray(self._canvas, format="rgb24")
        # Times must grow, and some files leave them out or repeat them.
        self._last = pts if pts is not None and pts > self._last else self._last + 1
        frame.pts, frame.time_base = self._last, self.video.time_base
        self._mux(frame)
        self.frames += 1

    def finish(self, path: Path | None = None) -> Path:
        """Write what is still held back, flush to disk and give the video its name, or the one given."""
        final = self.path if path is None else path
        try:
            self._mux(None)
            self._container.close()
        except BaseException:
            self.discard()
            raise
        files.give_name(self._temporary, final)
        return final

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError, ValueError):  # what cannot be finished is removed all the same
            self._container.close()
        self._temporary.unlink(missing_ok=True)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def key_of(classes: Sequence[str], palette: Palette, width: int, most: int) -> Image.Image | None:
    """The legend of all classes in the largest letters in which it is exactly so wide and no higher than `most`.

    None where no letters are small enough: it is a picture of its own then.
    """
    wanted = min(_LARGEST_TEXT, max(13, round(width / 45)))
    for size in range(wanted, _SMALLEST_TEXT - 1, -1):
        made = legend(classes, palette, width=width, text_size=size)
        if made.width == width and made.height <= most:
            return made
    return None


def _stream(container: Any, video: Video, canvas: np.ndarray, encoder: Encoder) -> Any:
    stream = container.add_stream(encoder.name, rate=video.rate, options=encoder.options)
    stream.height, stream.width = canvas.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = video.time_base
    if video.aspect != 1:
        stream.codec_context.sample_aspect_ratio = video.aspect
    stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
    return stream
