from __future__ import annotations

import csv
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densekd.data.palette import made_palette
from densekd.errors import ArgumentError, DataError
from densekd.predict import predict
from densekd.predict import video as video_module
from densekd.predict.film import find_encoder, key_of
from densekd.predict.result import VideoPrediction
from densekd.predict.video import check_video, frames_of
from shipkit import File

av = pytest.importorskip("av", reason="PyAV is not installed: the extra video")

WIDTH, HEIGHT, RATE = 64, 48, Fraction(25, 2)
KINDS = {
    "mp4": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "mkv": ("libx264", "yuv420p"),
    "gif": ("gif", "rgb8"),
}


def red_part(number: int, width: int = WIDTH) -> int:
    """Columns of frame `number` that are red: more and more of them."""
    return min(width - 8, 8 + 6 * number)


def make(path: Path, frames: int = 7, width: int = WIDTH, height: int = HEIGHT) -> Path:
    name, pixels = KINDS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number in range(frames):
            values = np.zeros((height, width, 3), np.uint8)
            values[:, : red_part(number, width), 0] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def shown(path: Path) -> tuple[Any, list[np.ndarray], list[float]]:
    """The stream's rate, frames and their times in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return (
            stream.average_rate,
            [one.to_ndarray(format="rgb24") for one in frames],
            [float(one.time) for one in frames],
        )


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.slow
class TestVideos:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_every_frame_is_segmented(self, tmp_path: Path, kind: str) -> None:
        clip = make(tmp_path / f"clip.{kind}")
        seen: list[tuple[str, int, int]] = []
        (made,) = predict(
            File(multiple_of=16), [clip], tmp_path / "out", frame_masks=True, batch_size=3, alpha=1.0,
            framing=lambda *told: seen.append(told),
        )  # fmt: skip
        assert isinstance(made, VideoPrediction)
        assert (made.frames, made.height, made.width) == (7, HEIGHT, WIDTH)
        assert seen == [(clip.name, 3, 7), (clip.name, 6, 7), (clip.name, 7, 7)]
        assert made.masks is not None
        names = sorted(path.name for path in made.masks.iterdir())
        assert names == [f"{number:06}.png" for number in range(1, 8)]
        found = [np.asarray(Image.open(made.masks / name)) for name in names]
        truth = [np.broadcast_to(np.arange(WIDTH) >= red_part(number), (HEIGHT, WIDTH)) for number in range(7)]
        for ids, expected in zip(found, truth, strict=True):
            assert (ids == expected).mean() > 0.96  # colours are stored at half the size
        table = rows(tmp_path / "out" / "coverage.csv")
        assert [row[:2] for row in table[1:-1]] == [[clip.name, str(number)] for number in range(1, 8)]
        assert [float(row[2]) for row in table[1:-1]] == pytest.approx([(ids == 0).mean() for ids in found], abs=1e-6)
        assert float(table[-1][2]) == pytest.approx(made.shares["a"], abs=1e-6)

        assert made.overlay == tmp_path / "out" / "overlays" / f"clip{find_encoder().suffix}"
        rate, frames, times = shown(made.overlay)
        before = shown(clip)
        assert rate == before[0]
        assert times == pytest.approx(before[2], abs=1e-3)
        assert len(frames) == 7
        first, second = (np.array(color) for color in made_palette(2))
        for number, pixels in enumerate(frames):
            edge = red_part(number)
            for part, color in ((pixels[8:40, : edge - 6], first), (pixels[8:40, edge + 6 : WIDTH], second)):
                if part.size:
                    assert np.abs(part.reshape(-1, 3).mean(0) - color).max() < 14

    def test_odd_sizes_get_a_pixel_more(self, tmp_path: Path) -> None:
        clip = make(tmp_path / "clip.gif", 2, 63, 47)
        (made,) = predict(File(), [clip], tmp_path / "out")
        assert (made.height, made.width) == (47, 63)
        _, frames, _ = shown(made.overlay)  # type: ignore[arg-type]
        assert frames[0].shape[1] == 64
        assert frames[0].shape[0] % 2 == 0
        assert not list((tmp_path / "out").rglob("masks"))

    def test_turned_as_the_file_says(self, tmp_path: Path) -> None:
        clip = make(tmp_path / "clip.mp4", 2)
        data = clip.read_bytes()
        one = (1 << 16).to_bytes(4, "big")
        plain = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
        clockwise = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(16)
        assert data.count(plain) == 2  # of the film and of the track
        at = data.rindex(plain)
        (tmp_path / "turned.mp4").write_bytes(data[:at] + clockwise + plain[32:] + data[at + 36 :])
        video = check_video(tmp_path / "turned.mp4")
        assert (video.height, video.width) == (WIDTH, HEIGHT)
        image = next(frames_of(tmp_path / "turned.mp4")).image
        # What was at the left is at the top once the frame is turned clockwise.
        assert int(image[0, 2, :].min()) > 200
        assert int(image[0, -2, :].max()) < 60
        (made,) = predict(File(), [tmp_path / "turned.mp4"], tmp_path / "out")
        assert made.overlay is not None
        assert shown(made.overlay)[1][0].shape[1] == HEIGHT

    def test_interrupted(self, tmp_path: Path) -> None:
        clip, said = make(tmp_path / "clip.mp4", 9), []

        def stop(name: str, done: int, total: int) -> None:
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict(File(), [clip], tmp_path / "out", batch_size=2, framing=stop, said=said.append)
        suffix = find_encoder().suffix
        assert sorted(
            path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")
        ) == sorted(["coverage.partial.csv", "overlays/clip-legend.png", f"overlays/clip.partial{suffix}"])
        assert len(shown(tmp_path / "out" / "overlays" / f"clip.partial{suffix}")[1]) == 4
        assert len(rows(tmp_path / "out" / "coverage.partial.csv")) == 5
        assert "stopped after frame 4 of 9; the first 4 frames:" in said[1]
        predict(File(), [clip], tmp_path / "out", force=True)
        assert not list((tmp_path / "out").rglob("*partial*"))

    def test_damaged_further_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clip = make(tmp_path / "clip.mp4", 5)
        read = frames_of

        def damaged(path: Path) -> Any:
            for number, frame in enumerate(read(path)):
                if number == 3:
                    raise DataError(f"{path}: damaged after frame 3")
                yield frame

        monkeypatch.setattr("densekd.predict.videos.frames_of", damaged)
        with pytest.raises(
            DataError, match=r"damaged after frame 3; 3 frames were segmented; the first 3 frames: .*partial"
        ):
            predict(File(), [clip], tmp_path / "out")
        assert not (tmp_path / "out" / "overlays" / f"clip{find_encoder().suffix}").exists()

    def test_cut_short(self, tmp_path: Path) -> None:
        clip = make(tmp_path / "clip.mkv", 60)
        assert check_video(clip).cut is None
        clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
        said: list[str] = []
        predict(File(), [clip], tmp_path / "out", overlays=False, said=said.append)
        assert f"{clip}: says that it lasts" in said[0]
        assert "it may have been cut short" in said[0]

    def test_a_codec_that_nobody_knows(self, tmp_path: Path) -> None:
        clip = make(tmp_path / "clip.mp4", 2)
        clip.write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
        with pytest.raises(DataError, match=r"codec is unknown here|no frame can be decoded|cannot be read"):
            predict(File(), [clip], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_images_and_videos_together(self, tmp_path: Path) -> None:
        clip = make(tmp_path / "clip.mp4", 2)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
        made = predict(File(), [clip, tmp_path / "a.png"], tmp_path / "out", overlays=False)
        assert [type(one).__name__ for one in made] == ["Prediction", "VideoPrediction"]
        assert [row[:2] for row in rows(tmp_path / "out" / "coverage.csv")[1:]] == [
            ["a", ""], ["clip.mp4", "1"], ["clip.mp4", "2"], ["mean", ""],
        ]  # fmt: skip
        assert made[1].overlay is None
        assert not list((tmp_path / "out").rglob("*.mp4"))


class TestRefusals:
    @pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
    def test_no_video(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "clip.mp4").write_bytes(content)
        with pytest.raises(DataError, match=r"clip\.mp4: cannot be read as a video"):
            predict(File(), [tmp_path / "clip.mp4"], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_sound_alone(self, tmp_path: Path) -> None:
        with wave.open(str(tmp_path / "clip.mov"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(1600))
        with pytest.raises(DataError, match=r"holds no video \(1 streams of other kinds\)"):
            predict(File(), [tmp_path / "clip.mov"], tmp_path / "out")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere\.mp4: cannot be read as a video \(No such file"):
            predict(File(), [tmp_path / "nowhere.mp4"], tmp_path / "out")

    def test_two_of_one_name(self, tmp_path: Path) -> None:
        clips = [tmp_path / "clip.mp4", tmp_path / "clip.gif"]
        with pytest.raises(DataError, match="would both become the results of clip"):
            predict(File(), clips, tmp_path / "out")

    def test_what_is_for_images(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="--only is for images"):
            predict(File(), [tmp_path / "clip.mp4"], tmp_path / "out", only=tmp_path / "list.txt")

    def test_without_pyav(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(video_module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ArgumentError, match=r'pip install "densekd\[video\]"'):
            predict(File(), [tmp_path / "clip.mp4"], tmp_path / "out")


def test_a_legend_is_as_wide_as_the_video_or_not_there() -> None:
    key = key_of(("sky", "road"), made_palette(2), 320, 120)
    assert key is not None
    assert (key.width, key.height <= 120) == (320, True)
    assert key_of(tuple(f"class {number}" for number in range(40)), made_palette(40), 120, 40) is None
