"""Made-up clips with ground truth: `Scene`, which every generator gives, and objects that hide, cross, come late and deform.

A scene is layers of cut-outs (pasting: Dwibedi, Misra and Hebert 2017): each has a texture, an outline, a path and a wobble,
nearer ones cover farther ones, and one camera sees them all. A pixel's label is what the pixel shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..files import replacing_folder
from ..masks import write_labels
from ..progress import progress
from ..prompts import Box, Prompts, by_label

__all__ = ["KINDS", "Scene", "scene", "write_scenes"]

SEEN = 64 / (256 * 480)  # of the frame: so much of an object makes a prompt
REACH = 0.62  # an object's radius, of half the size of its patch: room to wobble
KINDS = ("occluder", "lookalike", "late", "deform", "camera", "mixed")


@dataclass(frozen=True)
class Scene:
    """A clip with ground truth, made as it is read: iterating gives (image, labels) per frame, and the same bytes each time.

    `image` is (H, W, 3) uint8 RGB; `labels` is (H, W) uint8, pixel value = object id, 0 = background; the hidden part of an
    object has the label of what hides it. `objects` maps ids to names. `aux` lists the ids of auxiliary objects, which help to
    find the others and are not a result themselves.
    """

    name: str
    fps: float
    frames: int
    height: int
    width: int
    objects: Mapping[int, str]
    make: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]] = field(repr=False, compare=False)
    aux: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.make()

    def __len__(self) -> int:
        return self.frames

    @property
    def images(self) -> Iterator[np.ndarray]:
        return (image for image, _ in self)

    @property
    def truth(self) -> Iterator[np.ndarray]:
        return (labels for _, labels in self)

    def prompts(self) -> Prompts:
        """A tight box per object, from the truth, on the first frame that shows enough of it to be seen; auxiliary objects too."""
        found: dict[int, dict[int, Box]] = {}
        missing = set(self.objects)
        for t, labels in enumerate(self.truth):
            for obj, mask in by_label(labels).items():
                if obj in missing and mask.mean() >= SEEN:
                    (rows,), (columns,) = (np.nonzero(mask.any(axis)) for axis in (1, 0))
                    found.setdefault(t, {})[obj] = Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                    missing.remove(obj)
            if not missing:
                break
        video = {"name": self.name, "width": self.width, "height": self.height, "fps": self.fps, "frames": self.frames}
        return Prompts(found, {obj: {"name": name} for obj, name in self.objects.items()}, video)

    def write(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes the scene as `write_scenes` does."""
        return write_scenes(folder, [self], overwrite)


def write_scenes(folder: str | Path, scenes: Sequence[Scene], overwrite: bool = False) -> Path:
    """Writes scenes the way DAVIS lies on a disk, all or none of them.

    That is `JPEGImages/<name>/00000.jpg` (quality 95), `Annotations/<name>/00000.png` (indexed, DAVIS palette) and
    `prompts/<name>.json`. `InputError` where two scenes have one name, or where `folder` has files in it, unless `overwrite`.
    """
    names = [scene.name for scene in scenes]
    if len(set(names)) < len(names):
        raise InputError("scenes with different names", ", ".join(names), "give each its own seed or kind")
    with replacing_folder(folder, overwrite) as root:
        for scene in progress(scenes, len(scenes), "clips", "clip"):
            images, annotations = root / "JPEGImages" / scene.name, root / "Annotations" / scene.name
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for t, (image, labels) in enumerate(scene):
                _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
                (images / f"{t:05d}.jpg").write_bytes(jpeg.tobytes())
                write_labels(annotations / f"{t:05d}.png", labels)
            scene.prompts().save(root / "prompts" / f"{scene.name}.json")
    return Path(folder)


def check_clip(seed: int, frames: int, height: int, width: int) -> None:
    """`InputError` unless the seed can be one, and there is a frame large enough to show something."""
    if seed < 0:
        raise InputError("a seed ≥ 0", seed, "choose another number")
    if frames < 1 or height < 64 or width < 64:
        raise InputError(
            "at least one frame of at least 64×64 pixels", f"{frames} of {width}×{height}", "ask for a larger clip"
        )


def scene(
    seed: int, kind: str = "mixed", frames: int = 60, height: int = 256, width: int = 480, fps: float = 25, every: int = 1
) -> Scene:
    """A scene of textured objects. A seed changes everything: colours, textures, outlines, paths, camera, noise.

    `every` is how many frames of the film pass from one that is shown to the next.

    - `occluder`: object 1 goes behind something wider than itself, is gone for about a quarter of the clip, and comes back,
      on the other side or where it went in.
    - `lookalike`: two or three copies of one object meet and cross.
    - `late`: object 2 enters after about a third of the clip.
    - `deform`: objects change their shape and size strongly.
    - `camera`: the camera pans, zooms, rolls, shakes and loses focus.
    - `mixed`: any of these at once, in other proportions each time, as training wants it. An object may stay hidden throughout.

    The textures are made at once and kept (some MB); the frames are made as they are read. `InputError` where the kind is not
    known or the clip is too small.
    """
    check_clip(seed, frames, height, width)
    if kind not in KINDS:
        raise InputError("a kind of scene among " + ", ".join(KINDS), repr(kind), "choose one of these")
    stage = _Stage((seed, KINDS.index(kind)), kind, frames * every, height, width)
    objects = {label: f"object {label}" for label in sorted({sprite.label for sprite in stage.sprites} - {0})}
    return Scene(f"{kind}-{seed:02d}", fps, frames, height, width, objects, lambda: stage.film(every))


@dataclass(frozen=True)
class _Sprite:
    """A cut-out: `patch` (S, S, 4) float32, RGB times alpha and alpha, 0 … 1; label 0 is for what only hides or distracts.

    `path` is (T, 4): x, y of the centre and the half size of the patch, in pixels of the scene, and the angle in radians.
    """

    label: int
    patch: np.ndarray
    path: np.ndarray
    wobble: float = 0.0  # how far the patch is bent, as a part of its half size
    phase: tuple[float, float, float] = (0.0, 0.0, 0.0)


def _colours(rng: np.random.Generator) -> np.ndarray:
    """A palette (256, 3) float32: a few colours, one running into the next."""
    count = int(rng.integers(2, 6))
    hue = (rng.uniform() + rng.choice([0.03, 0.12, 0.4]) * rng.normal(size=count)) % 1
    hsv = np.stack([360 * hue, rng.uniform(0, 1) ** 0.6 * rng.uniform(0.5, 1, count), rng.uniform(0.12, 1, count)], -1)
    colours = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    at = np.linspace(0, 1, 256)
    return np.stack([np.interp(at, np.linspace(0, 1, count), channel) for channel in colours.T], -1).astype(np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int, coarse: int) -> np.ndarray:
    """Noise in several octaves, the largest of about `coarse` bumps across the smaller side; (height, width), 0 … 1."""
    total = np.zeros((height, width), np.float32)
    rough = rng.uniform(0.35, 0.7)
    for octave in range(5):
        cells = min(height, width) / (coarse * 2**octave)
        if cells < 1.5:
            break
        small = rng.random((int(height / cells) + 2, int(width / cells) + 2), np.float32)
        total += rough**octave * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = np.percentile(total, (2, 98))
    return np.clip((total - low) / (high - low), 0, 1)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A surface (height, width, 3) float32: marble, stripes, checks, spots or rings in a palette of its own."""
    clouds = _clouds(rng, height, width, int(rng.integers(2, 7)))
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(height, width)
    angle, k = rng.uniform(0, np.pi), rng.uniform(15, 60)
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bend = rng.choice([0, 0.5, 3]) * clouds
    pattern = rng.choice(["marble", "stripes", "checks", "spots", "rings"])
    if pattern == "marble":
        value = clouds
    elif pattern == "stripes":
        value = 0.5 + 0.5 * np.sin(k * across + bend)
    elif pattern == "checks":
        value = 0.5 + 0.45 * np.tanh(4 * np.sin(k * across + bend) * np.sin(k * along + bend))
    elif pattern == "spots":
        value = 1 / (1 + np.exp(-25 * (clouds - rng.uniform(0.4, 0.6))))
    else:
        value = 0.5 + 0.5 * np.sin(k * np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1)) + bend)
    value = 0.85 * value + 0.15 * _clouds(rng, height, width, 12)
    return _colours(rng)[(255 * np.clip(value, 0, 1)).astype(np.uint8)]


def _outline(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How far inside a random outline of radius about 1 each place is: > 0 within, and at most 1."""
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    shape = rng.choice(["blob", "polygon", "star", "box", "ring", "lobes"])
    if shape == "blob":
        k = np.arange(2, 7)
        waves = np.cos(k * angle[..., None] + rng.uniform(0, 6.3, 5))
        reach = np.maximum(1 + waves @ (rng.normal(0, 0.35, 5) / k), 0.2)
    elif shape == "polygon":
        step = 2 * np.pi / rng.integers(3, 8)
        reach = np.cos(step / 2) / np.cos(angle % step - step / 2)
    elif shape == "star":
        reach = 1 + rng.uniform(0.15, 0.4) * np.cos(rng.integers(3, 8) * angle)
    elif shape == "box":
        power, stretch = rng.uniform(2, 8), rng.uniform(0.45, 1)
        return 1 - (abs(x) ** power + abs(y / stretch) ** power) ** (1 / power)
    elif shape == "ring":
        hole = rng.uniform(0.3, 0.55)
        return np.minimum(1 - radius, radius - hole)
    else:
        lobes = zip(rng.uniform(0.3, 0.5, 3), rng.uniform(0, 6.3) + np.array([0, 2.1, 3.9]), strict=True)
        return np.max([r - np.hypot(x - 0.5 * np.cos(turn), y - 0.5 * np.sin(turn)) for r, turn in lobes], 0)
    return 1 - radius * reach.max() / reach


def _cut_out(rng: np.random.Generator, unlike: np.ndarray | None = None, size: int = 160) -> np.ndarray:
    """A patch (size, size, 4) of a texture in an outline; the most different in colour from `unlike` of three."""
    textures = [_texture(rng, size, size) for _ in range(1 if unlike is None else 3)]
    texture = max(textures, key=lambda t: 0.0 if unlike is None else float(abs(t.mean((0, 1)) - unlike).sum()))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j] / REACH
    inside = _outline(rng, y, x)
    alpha = np.clip(0.5 + inside * REACH * size / 3, 0, 1)[..., None]
    light = 0.75 + 0.25 * np.clip(1.2 - 0.5 * np.hypot(x + 0.3, y + 0.3), 0, 1)[..., None]  # from the upper left
    return np.concatenate([texture * light * alpha, alpha], -1).astype(np.float32)


def _pillar(rng: np.random.Generator, half_width: float, height: float, unlike: np.ndarray) -> np.ndarray:
    """A patch that stands from top to bottom of the scene, at least `half_width` to each side of its middle."""
    size = 320
    texture = max((_texture(rng, size, size) for _ in range(3)), key=lambda t: float(abs(t.mean((0, 1)) - unlike).sum()))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j] * height
    edge = half_width * (1.12 + 0.08 * np.sin(rng.uniform(4, 12) * y / height + rng.uniform(0, 6.3)))
    alpha = np.clip((edge - abs(x)) * size / height / 3, 0, 1)[..., None]
    return np.concatenate([texture * alpha, alpha], -1).astype(np.float32)


class _Stage:
    """Everything that a scene is made of; the kind's method puts up the objects and what stands before them."""

    def __init__(self, seed: tuple[int, int], kind: str, frames: int, height: int, width: int):
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.frames, self.height, self.width = frames, height, width
        self.short, self.time = min(height, width), np.linspace(0, 1, frames)
        self.shake, self.defocus = 0.03, 0.3  # of the camera: a part of the frame; pixels
        self.border = round(0.25 * self.short)  # of the background, beyond the frame
        self.background = _texture(self.rng, height + 2 * self.border, width + 2 * self.border)
        self.tone = self.background.mean((0, 1))
        clutter = [self._clutter() for _ in range(int(self.rng.integers(2, 6)))]
        objects = {
            "occluder": self._occluder, "lookalike": self._lookalike, "late": self._late,
            "deform": self._deform, "camera": self._camera, "mixed": self._mixed,
        }[kind]()  # fmt: skip
        self.sprites = [*clutter, *objects]  # far to near
        self._set_up_camera()

    def _set_up_camera(self) -> None:
        """Light, blur (T,), grain, zoom and roll (T,), and the map from the scene to the frame (T, 2, 3)."""
        self.light, self.blur = 1 + self._roam(0.12), self.defocus * abs(self._roam(1))
        self.grain = self.rng.uniform(0.005, 0.03)
        self.zoom, self.roll = 1.02 + self.shake * (1 + self._roam(1)), self._roam(self.shake)
        shift = np.stack([self._roam(1.2 * self.shake), self._roam(0.8 * self.shake)], -1)
        shift = self.short * (shift + self.rng.normal(0, 0.03 * self.shake, shift.shape))
        cos, sin = self.zoom * np.cos(self.roll), self.zoom * np.sin(self.roll)
        turn = np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1)
        middle = np.array([self.width / 2, self.height / 2])
        self.view = np.concatenate([turn, (middle + shift - turn @ middle)[..., None]], -1)

    def _clutter(self) -> _Sprite:
        """Something of no interest, which stands behind the objects."""
        x, y, size, angle = self.rng.uniform((0, 0, 0.08, 0), (self.width, self.height, 0.25, 6.3))
        at = x, y, size * self.short, angle
        return _Sprite(0, _cut_out(self.rng), np.tile(at, (self.frames, 1)))

    def _occluder(self) -> list[_Sprite]:
        radius, far, middle = 0.11 * self.short, 0.34 * self.width, self.rng.uniform(0.48, 0.52) * self.width
        inside, onward = far / 5, self.rng.choice([-1, 1])
        way = np.interp(self.time, [0, 0.38, 0.62, 1], [-far, -inside, onward * inside, onward * far])
        y = self.rng.uniform(0.35, 0.65) * self.height + self._roam(0.08 * self.height)
        patch = _cut_out(self.rng, self.tone)
        colour = patch[..., :3].sum((0, 1)) / patch[..., 3].sum()
        tall = max(self.height, 4 * (inside + radius))
        pillar = _pillar(self.rng, inside + 1.2 * radius, tall, (self.tone + colour) / 2)
        stand = np.tile([middle, self.height / 2, tall, 0], (self.frames, 1))
        return [self._sprite(1, patch, middle + self.rng.choice([-1, 1]) * way, y, radius), _Sprite(0, pillar, stand)]

    def _lookalike(self) -> list[_Sprite]:
        patch, radius = _cut_out(self.rng, self.tone), self.rng.uniform(0.11, 0.15) * self.short
        rows, sprites = self.rng.permutation([0.38, 0.5, 0.62]) * self.height, []
        for i in range(int(self.rng.integers(2, 4))):
            reach = self.rng.uniform(0.25, 0.33) * (-1) ** i * self.width
            x = self.width / 2 + reach * np.cos(np.pi * self.time * self.rng.uniform(0.9, 1.1))
            y = rows[i] + self._roam(0.05 * self.height)
            shade = np.array([1 - 0.03 * i] * 3 + [1], np.float32)
            sprites.append(self._sprite(i + 1, patch * shade, x, y, radius))
        return sprites

    def _late(self) -> list[_Sprite]:
        radius, side = self.rng.uniform(0.12, 0.18) * self.short, self.rng.choice([-1, 1])
        away = self.width / 2 + 1.4 * radius + 0.08 * self.width
        x = self.width / 2 + side * np.interp(self.time, [0, 0.3, 0.7, 1], [away, away, 0.2 * self.width, 0.1 * self.width])
        y = self.rng.uniform(0.3, 0.7) * self.height + self._roam(0.05 * self.height)
        return [self._wanderer(1), self._sprite(2, _cut_out(self.rng, self.tone), x, y, radius)]

    def _deform(self) -> list[_Sprite]:
        return [self._wanderer(i + 1, wobble=0.16, spin=2.5, swell=0.35) for i in range(int(self.rng.integers(1, 3)))]

    def _camera(self) -> list[_Sprite]:
        self.shake, self.defocus = 0.12, 2.5
        return [self._wanderer(i + 1) for i in range(int(self.rng.integers(1, 3)))]

    def _mixed(self) -> list[_Sprite]:
        self.shake, self.defocus = self.rng.uniform(0, 0.12), self.rng.uniform(0, 1.5)
        sprites: list[_Sprite] = []
        for i in range(int(self.rng.integers(1, 5))):
            twin = sprites[-1].patch if sprites and self.rng.uniform() < 0.3 else None
            wobble, spin, swell = self.rng.uniform(0, (0.16, 2.5, 0.35))
            sprites.append(self._wanderer(i + 1, twin, wobble=wobble, spin=spin, swell=swell))
        return sprites + [self._wanderer(0) for _ in range(int(self.rng.integers(0, 3)))]

    def _roam(self, size: float) -> np.ndarray:
        """A smooth random way (T,) about 0, within ± `size`."""
        period, phase = self.rng.uniform(40, 160, 3), self.rng.uniform(0, 2 * np.pi, 3)
        return size / 3 * np.sin(2 * np.pi * np.arange(self.frames)[:, None] / period + phase).sum(1)

    def _sprite(
        self, label: int, patch: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float,
        wobble: float = 0.04, spin: float = 0.5, swell: float = 0.05,
    ) -> _Sprite:  # fmt: skip
        angle = self.rng.uniform(0, 6.3) + spin * (self.rng.normal(0, 0.01) * np.arange(self.frames) + self._roam(0.6))
        path = np.stack([x, y, radius / REACH * (1 + self._roam(swell)), angle], -1)
        return _Sprite(label, patch, path, wobble, tuple(self.rng.uniform(0, 6.3, 3)))

    def _wanderer(self, label: int, patch: np.ndarray | None = None, **habits: float) -> _Sprite:
        x, y = self._roam(self.rng.uniform(0.05, 0.25) * self.width), self._roam(self.rng.uniform(0.03, 0.2) * self.height)
        x += self.rng.uniform(0.2, 0.8) * self.width - x[0]  # in the frame at first
        y += self.rng.uniform(0.25, 0.75) * self.height - y[0]
        radius = self.rng.uniform(0.09, 0.2) * self.short
        return self._sprite(label, _cut_out(self.rng, self.tone) if patch is None else patch, x, y, radius, **habits)

    def film(self, every: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng((*self.seed, 1))  # of the noise; all else is drawn already, and stays
        for t in range(0, self.frames, every):
            zoom, roll, view = self.zoom[t], self.roll[t], self.view[t]
            ground = view @ [[1, 0, -self.border], [0, 1, -self.border], [0, 0, 1]]
            size = self.width, self.height
            image = cv2.warpAffine(self.background, ground, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            labels = np.zeros((self.height, self.width), np.uint8)
            for sprite in self.sprites:
                x, y, half, angle = sprite.path[t]
                _paste(image, labels, sprite, t, view @ (x, y, 1), zoom * half, angle + roll)
            if self.blur[t] > 0.3:
                image = cv2.GaussianBlur(image, (0, 0), self.blur[t])
            image = image * self.light[t] + self.grain * rng.standard_normal(image.shape, np.float32)
            yield np.clip(255 * image, 0, 255).astype(np.uint8), labels


def _paste(image: np.ndarray, labels: np.ndarray, sprite: _Sprite, t: int, at: np.ndarray, half: float, angle: float) -> None:
    """Draws one sprite over the picture and its label over the labels, in place."""
    height, width = labels.shape
    reach = half * np.sqrt(2)
    x0, y0 = (max(0, int(v - reach)) for v in at)
    x1, y1 = (min(n, int(v + reach) + 2) for v, n in zip(at, (width, height), strict=True))
    if x1 <= x0 or y1 <= y0:
        return
    # from the frame to the patch, −1 … 1 both ways, bent by waves
    x, y = ((np.arange(a, b, dtype=np.float32) - c) / half for a, b, c in ((x0, x1, at[0]), (y0, y1, at[1])))
    x, y = x[None], y[:, None]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if sprite.wobble:
        a, b, c = (p + 0.12 * t * (1 + 0.3 * i) for i, p in enumerate(sprite.phase))
        u, v = (
            u + sprite.wobble * np.sin(4 * v + a) + sprite.wobble / 3 * np.sin(9 * v + c),
            v + sprite.wobble * np.sin(4 * u + b),
        )
    scale = (len(sprite.patch) - 1) / 2
    patch = cv2.remap(
        sprite.patch, (scale * (u + 1)).astype(np.float32), (scale * (v + 1)).astype(np.float32), cv2.INTER_LINEAR
    )
    image[y0:y1, x0:x1] += patch[..., :3] - patch[..., 3:] * image[y0:y1, x0:x1]
    labels[y0:y1, x0:x1][patch[..., 3] > 0.5] = sprite.label
