"""Videos: which files are taken for one, and their frames, upright and in RGB."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from densekd.errors import ArgumentError, DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"})
"""Files with these endings are videos, whatever is in them."""


class Frame(NamedTuple):
    """One frame: uint8 `(3, H, W)`, RGB, upright; `pts`, its time in units of the video's `time_base`, or None."""

    image: Tensor
    pts: int | None


@dataclass(frozen=True)
class Video:
    """A video that can be read.

    Attributes:
        path: the file.
        height, width: of a frame, after the rotation that the file asks for.
        frames: how many the file says or seems to hold; a damaged file may give fewer.
        rate: frames a second, the average.
        time_base: seconds of one unit of a frame's time.
        aspect: width of a pixel through its height, after the rotation.
        cut: a line for the user where the file ends long before the time that it gives itself.
    """

    path: Path
    height: int
    width: int
    frames: int
    rate: Fraction
    time_base: Fraction
    aspect: Fraction
    cut: str | None = None


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video, by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def require_av() -> None:
    """Refuse, with the command that installs it, where PyAV is missing.

    Raises:
        ArgumentError: it is.
    """
    if importlib.util.find_spec("av") is None:
        raise ArgumentError('a video needs PyAV, which is not installed: pip install "densekd[video]"')


def check_video(path: Path) -> Video:
    """Open a video, decode its first frame and count the others.

    The packets of the file are counted, not decoded, because some formats do not say how many frames they hold.

    Raises:
        DataError: no video, one without frames, or one of a codec that PyAV has no decoder for.
        ArgumentError: PyAV is missing.
    """
    first = next(frames_of(path), None)
    if first is None:
        raise DataError(f"{path}: a video without frames")
    with _opened(path) as container:
        stream = container.streams.video[0]
        try:
            times = [packet.pts for packet in container.demux(stream) if packet.size]
        except _errors() as error:
            raise DataError(f"{path}: a damaged video ({_reason(error)})") from None
        height, width = int(first.image.shape[1]), int(first.image.shape[2])
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        turned = (height, width) != (stream.height, stream.width)
        return Video(
            path=path,
            height=height,
            width=width,
            frames=max(len(times), 1),
            rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
            time_base=Fraction(stream.time_base),
            aspect=1 / aspect if turned else aspect,
            cut=_cut(path, container, max((time for time in times if time is not None), default=None)),
        )


def frames_of(path: Path) -> Iterator[Frame]:
    """The frames of a video in the order they are shown.

    Raises:
        DataError: no video, a codec without decoder, damaged data (the frame is named), or frames of different sizes.
        ArgumentError: PyAV is missing.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        done, size = 0, None
        try:
            for frame in container.decode(stream):
                image = _upright(frame)
                size = size or image.shape
                if image.shape != size:
                    raise DataError(
                        f"{path}: frame {done + 1} is {image.shape[2]}x{image.shape[1]}, those before it are "
                        f"{size[2]}x{size[1]}; cut the video where its size changes"
                    )
                done += 1
                yield Frame(image, frame.pts)
        except _errors() as error:
            where = f"damaged after frame {done}" if done else "no frame can be decoded"
            raise DataError(f"{path}: {where} ({_reason(error)})") from None


def _cut(path: Path, container: Any, last: int | None) -> str | None:
    """What is said where the last frame stands more than a second and a tenth before the end that the file gives.

    The file's own length is not looked at beside other streams: sound may last longer than the pictures.
    """
    import av

    stream = container.streams.video[0]
    if stream.duration is not None:
        length = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        length = container.duration / av.time_base
    else:
        return None
    seen = 0.0 if last is None else float((last - (stream.start_time or 0)) * stream.time_base)
    if length - seen <= max(1.0, length / 10):
        return None
    return f"{path}: says that it lasts {length:.1f} s, its last frame is at {seen:.1f} s: it may have been cut short"


def _opened(path: Path) -> Any:
    require_av()
    import av

    try:
        container = av.open(str(path))
    except _errors() as error:
        raise DataError(f"{path}: cannot be read as a video ({_reason(error)})") from None
    streams, count = container.streams.video, len(container.streams)
    if not streams:
        container.close()
        raise DataError(f"{path}: holds no video ({count} streams of other kinds)")
    if streams[0].codec_context is None:
        container.close()
        raise DataError(f"{path}: its codec is unknown here; convert it to h264 or vp9")
    return container


def _upright(frame: Any) -> Tensor:
    """A frame as the player shows it: RGB, and turned as the file's display matrix says."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # anticlockwise, as numpy turns
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, quarters))).permute(2, 0, 1)


def _errors() -> tuple[type[Exception], ...]:
    import av

    return (av.error.FFmpegError, OSError)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip()
