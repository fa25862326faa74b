"""Segment a video: an overlay video, and a mask for every frame where they are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from densekd import files
from densekd.errors import DataError
from densekd.pictures import indexed, legend
from densekd.predict.coverage import Coverage
from densekd.predict.film import Encoder, Film
from densekd.predict.inputs import Said
from densekd.predict.result import VideoPrediction, shares_of, write_picture
from densekd.predict.segmenter import Segmenter
from densekd.predict.video import Frame, Video, frames_of

_DIGITS = 6
Counted = Callable[[str, int, int], None]
"""Called with a video's name, frames done, frames in all."""


@dataclass
class VideoJob:
    """How videos are segmented.

    Attributes:
        segmenter: the student.
        out: the folder for the results.
        encoder: what the overlay videos are written with; None: none are made.
        masks: whether every frame's mask is written, `masks/NAME/000001.png` and on.
        batch_size: frames in a forward pass.
        alpha: strength of the colours.
        coverage: takes a row for every frame.
        progress: told how far it is.
        said: called with lines that the user should see.
    """

    segmenter: Segmenter
    out: Path
    encoder: Encoder | None
    masks: bool
    batch_size: int
    alpha: float
    coverage: Coverage
    progress: Counted | None = None
    said: Said = field(default=lambda line: None)

    def run(self, video: Video, name: str) -> VideoPrediction:
        """Segment one video.

        Where it is broken off, or the video is damaged further on, the overlay video of the frames so far is kept as
        `NAME.partial.mp4`, and what is said names the frame.

        Raises:
            DataError: damaged data; the message says where, and what was kept.
        """
        if video.cut is not None:
            self.said(video.cut)
        film = self._film(video, name)
        sums = dict.fromkeys(self.segmenter.classes, 0.0)
        done = 0
        try:
            for group in _grouped(frames_of(video.path), self.batch_size):
                labels = self.segmenter.segment([frame.image for frame in group])
                for frame, label in zip(group, labels, strict=True):
                    shares = shares_of(label, self.segmenter.classes)
                    if self.masks:
                        write_picture(
                            self.out / "masks" / name / f"{done + 1:0{_DIGITS}}.png",
                            indexed(label, self.segmenter.palette),
                        )
                    if film is not None:
                        film.add(frame.image, label, frame.pts)
                    done += 1
                    self.coverage.add(video.path.name, shares, done)
                    sums = {one: total + shares.get(one, 0.0) for one, total in sums.items()}
                if self.progress is not None:
                    self.progress(video.path.name, done, max(done, video.frames))
        except (KeyboardInterrupt, SystemExit):
            self.said(f"{video.path}: stopped after frame {done} of {video.frames}{_kept(film)}")
            raise
        except DataError as error:
            raise DataError(f"{error}; {done} frames were segmented{_kept(film)}") from None
        except BaseException:
            if film is not None:
                film.discard()
            raise
        return self._ended(video, name, film, done, sums)

    def _film(self, video: Video, name: str) -> Film | None:
        if self.encoder is None:
            return None
        path = self.out / "overlays" / f"{name}{self.encoder.suffix}"
        classes, palette = self.segmenter.classes, self.segmenter.palette
        film = Film(path, video, classes, palette, self.alpha, self.encoder)
        if not film.below:
            beside = path.with_name(f"{path.stem}-legend.png")
            stream = io.BytesIO()
            legend(classes, palette).save(stream, format="PNG")
            files.write_bytes(beside, stream.getvalue())
            self.said(f"{path}: a legend of {len(classes)} classes does not fit below the frames; it is {beside}")
        return film

    def _ended(self, video: Video, name: str, film: Film | None, done: int, sums: dict[str, float]) -> VideoPrediction:
        overlay = None
        if film is not None:
            overlay = film.finish()
            _partial(overlay).unlink(missing_ok=True)
        return VideoPrediction(
            video=video.path,
            masks=self.out / "masks" / name if self.masks else None,
            overlay=overlay,
            height=video.height,
            width=video.width,
            frames=done,
            shares={one: total / done for one, total in sums.items() if total},
        )


def _grouped(frames: Iterator[Frame], count: int) -> Iterator[list[Frame]]:
    while group := list(islice(frames, count)):
        yield group


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def _kept(film: Film | None) -> str:
    """Keep what a film holds under a name that says it is not whole; in words."""
    if film is None:
        return ""
    if not film.frames:
        film.discard()
        return ""
    frames = "frame" if film.frames == 1 else f"{film.frames} frames"
    return f"; the first {frames}: {film.finish(_partial(film.path))}"
