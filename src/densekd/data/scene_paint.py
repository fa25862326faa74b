"""From a scene to a picture: sky, ground, everything on it from far to near, then the camera's own marks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from densekd.data import scene_plants as plants
from densekd.data import scene_posts as posts
from densekd.data.scene_buildings import paint_block, paint_ending
from densekd.data.scene_canvas import PAVEMENT, ROAD, SKY, SUPERSAMPLING, TREE, Canvas
from densekd.data.scene_cars import car
from densekd.data.scene_ground import paint_ground
from densekd.data.scene_layout import Block, Scene, Thing
from densekd.data.scene_people import person, rider

Array = np.ndarray[Any, Any]

_PAINTERS: dict[str, Callable[[Canvas, Thing], None]] = {
    "tree": plants.tree,
    "conifer": plants.conifer,
    "bush": plants.bush,
    "car": car,
    "person": person,
    "rider": rider,
    "lamp": posts.lamp,
    "lantern": posts.lantern,
    "mast": posts.mast,
    "bollard": posts.bollard,
    "sign": posts.sign,
    "board": posts.board,
    "signal": posts.signal,
}


def paint(scene: Scene, size: tuple[int, int]) -> tuple[Array, Array]:
    """The image `(H, W, 3)` and the class ids `(H, W)`, both uint8.

    The same scene at another size shows the same street; only the noise of the camera differs.
    """
    rng = random.Random(scene.seed)
    canvas = Canvas(scene, _sky(scene, size, rng))
    paint_ground(canvas)
    paint_ending(canvas)
    for part in scene.parts:
        if isinstance(part, Block):
            paint_block(canvas, part)
        else:
            _PAINTERS[part.kind](canvas, part)
    return _develop(canvas, size, rng)


def _field(rng: random.Random, rows: int, columns: int) -> Image.Image:
    """Uniform noise as a small picture."""
    return Image.frombytes("L", (columns, rows), rng.randbytes(rows * columns))


def _sky(scene: Scene, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """The background at the canvas' size: a gradient, the sun, clouds; labelled sky everywhere."""
    height, width = size
    light, view = scene.light, scene.view
    up = np.clip((view.horizon - (np.arange(height, dtype=np.float32) + 0.5) / height) / view.horizon, 0, 1)
    blend = np.sqrt(up)[:, None, None]
    low, top = np.array(light.sky_low, np.float32), np.array(light.sky_top, np.float32)
    sky = np.broadcast_to(low + (top - low) * blend, (height, width, 3)).copy()
    flip = -1.0 if view.mirror else 1.0
    if light.sun[2] > 0.15 and light.name in ("clear", "golden", "cloudy"):
        x = width / 2 / height + flip * (view.centre + view.focal * light.sun[0] / light.sun[2])
        y = view.horizon - view.focal * light.sun[1] / light.sun[2]
        ys = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - np.float32(y)
        xs = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / height - np.float32(x)
        far = ys * ys + xs * xs
        disc = np.clip(1.6 - far / 0.0016, 0, 1) if light.name != "cloudy" else np.float32(0)
        shine = np.clip(disc + 0.5 / (1 + far / 0.012) + 0.2 / (1 + far / 0.15), 0, 1)[..., None]
        sky += (np.array((255, 246, 222), np.float32) - sky) * shine
    if light.cloudiness > 0.12:
        sky += (np.array(light.cloud, np.float32) - sky) * _clouds(scene, size, rng)[..., None]
    canvas = np.empty((height, width, 4), np.uint8)
    canvas[..., :3] = np.clip(sky, 0, 255)
    canvas[..., 3] = SKY
    image = Image.fromarray(canvas, "CMYK")
    return image.resize((width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.NEAREST)


def _clouds(scene: Scene, size: tuple[int, int], rng: random.Random) -> Array:
    """How opaque the clouds are at each pixel, 0 to 1."""
    height, width = size
    total = np.zeros((height, width), np.float32)
    for share, rows, columns in ((0.55, 7, 5), (0.3, 14, 11), (0.15, 30, 22)):
        field = _field(rng, rows, columns).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(field, np.float32) * np.float32(share / 255)
    edge = np.float32(0.72 - 0.42 * scene.light.cloudiness)
    return np.clip((total - edge) * 4, 0, 0.92)


@lru_cache(maxsize=1)
def _grain() -> Array:
    """A tile of noise in several scales, mean 0, about -1 to 1, used for the grain of surfaces."""
    rng = random.Random(20)
    total = np.zeros((128, 128), np.float32)
    for share, cells in ((0.4, 128), (0.35, 32), (0.25, 8)):
        field = _field(rng, cells, cells).resize((128, 128), Image.Resampling.BICUBIC)
        total += (np.asarray(field, np.float32) - 127.5) * np.float32(share / 90)
    total -= total.mean()
    total.setflags(write=False)
    return total


def _develop(canvas: Canvas, size: tuple[int, int], rng: random.Random) -> tuple[Array, Array]:
    """The final picture: ground shade and grain, haze, glow, lens and sensor."""
    mask = np.asarray(canvas.image)[::SUPERSAMPLING, ::SUPERSAMPLING, 3].copy()
    picture = np.asarray(canvas.image.reduce(SUPERSAMPLING))[..., :3].astype(np.float32)
    _light_the_ground(canvas, picture, mask, rng)
    _leaves(picture, mask, rng)
    if canvas.lights:
        picture += _bloom(canvas, size)
    image = _lens(picture, size[0], rng)
    return _sensor(np.asarray(image).astype(np.float32), rng), mask


def _light_the_ground(canvas: Canvas, picture: Array, mask: Array, rng: random.Random) -> None:
    """Shadows, grain and haze of road and pavement, by the distance of each row."""
    height, width = mask.shape
    first = min(height - 1, max(0, math.ceil(canvas.cy / SUPERSAMPLING)))
    rows = (np.arange(first, height, dtype=np.float32) + 0.5) * SUPERSAMPLING - np.float32(canvas.cy)
    depth = np.float32(canvas.focal * canvas.eye) / np.maximum(rows, np.float32(0.7))
    columns = (np.arange(width, dtype=np.float32) + 0.5) * SUPERSAMPLING - np.float32(canvas.cx)
    across = depth[:, None] * (columns / np.float32(canvas.focal))[None, :]
    grain = _grain()
    shift = rng.randrange(128)
    tile = grain[((depth * 9).astype(np.int32) + shift)[:, None] & 127, (across * 9).astype(np.int32) & 127]
    broad = grain[((depth * 1.1).astype(np.int32) + shift)[:, None] & 127, (across * 1.6).astype(np.int32) & 127]
    fine = np.float32(0.11) / (1 + depth / 9)
    factor = 1 + tile * fine[:, None] + broad * np.float32(0.05)
    shade = canvas.shade.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(0.004 * height))
    dark = np.asarray(shade, np.float32)[first:] / 255
    on_ground = ((mask[first:] == ROAD) | (mask[first:] == PAVEMENT)).astype(np.float32)
    light = canvas.light
    clear = np.exp(-depth / np.float32(light.haze_depth))[:, None]
    part = picture[first:]
    for channel in range(3):
        # In a shadow only the ambient light is left, and less of it close to the thing.
        left = 0.93 * light.ambient[channel] / max(canvas.up[channel], 1e-3) * (0.78 if light.direct[0] < 0.2 else 1)
        plane = part[..., channel]
        lit = plane * factor * (1 - dark * np.float32(1 - left))
        hazy = lit * clear + np.float32(light.haze[channel]) * (1 - clear)
        plane += (hazy - plane) * on_ground


def _leaves(picture: Array, mask: Array, rng: random.Random) -> None:
    """Light and dark in foliage, and a trace of it on everything but the sky."""
    height, width = mask.shape
    cells = _field(rng, 48, 64).resize((width, height), Image.Resampling.BILINEAR)
    grain = (np.asarray(cells, np.float32) - 127.5) / 127.5
    strength = np.full(256, 0.05, np.float32)
    strength[TREE], strength[SKY] = 0.3, 0.0
    picture *= (1 + grain * strength[mask])[..., None]


def _bloom(canvas: Canvas, size: tuple[int, int]) -> Array:
    """Glow around lamps in the dark."""
    height, width = size
    glow = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(glow)
    for x, y, radius, colour in canvas.lights:
        px, py, r = x / SUPERSAMPLING, y / SUPERSAMPLING, max(0.6, radius / SUPERSAMPLING)
        draw.ellipse((px - r, py - r, px + r, py + r), colour)
    blurred = glow.filter(ImageFilter.GaussianBlur(0.022 * height))
    return np.asarray(blurred, np.float32) * np.float32(0.75)


def _lens(picture: Array, height: int, rng: random.Random) -> Image.Image:
    """Exposure, white balance, vignette, and a slight blur."""
    # The camera's own exposure brings the picture half of the way (in stops) to a medium brightness.
    gain = math.exp(rng.gauss(0, 0.1)) * min(1.6, math.sqrt(122 / max(float(picture.mean()), 1.0)))
    warm = rng.gauss(0, 0.035)
    balance = np.array((gain * (1 + warm), gain, gain * (1 - warm)), np.float32)
    picture *= balance
    h, w = picture.shape[:2]
    ys, xs = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    picture *= (1 - np.float32(rng.uniform(0.02, 0.1)) * (ys * ys + xs * xs))[..., None]
    np.clip(picture, 0, 255, out=picture)
    image = Image.fromarray(picture.astype(np.uint8), "RGB")
    blur = min(0.003, max(0.0, rng.gauss(0.0014, 0.0014))) * height
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.2 else image


def _sensor(picture: Array, rng: random.Random) -> Array:
    """Sensor noise: stronger in bright parts (photons), never none in dark ones (read-out)."""
    strength = rng.uniform(0.25, 0.7)
    # The sum of two uniform bytes stands for a normal deviate: it needs no transcendental function.
    noise = np.frombuffer(rng.randbytes(picture.size * 2), np.uint8).reshape(2, *picture.shape)
    deviate = (noise[0].astype(np.float32) + noise[1] - 255) / np.float32(104)
    picture += deviate * (2 + np.sqrt(picture) * np.float32(0.35)) * np.float32(strength)
    return np.clip(picture, 0, 255).astype(np.uint8)
