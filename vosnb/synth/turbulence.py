"""The embedded clip: two dyes in a turbulent channel with ridged walls, with ground truth. A seed names a clip.

Lengths are in frame heights, times in frames, y points down, and the flow is periodic in x and (inside the walls) in y.

The flow is two-dimensional and incompressible, in vorticity form: ∂ω/∂t = curl(u × ω + f) + ν∇²ω. It is solved
pseudo-spectrally with the 2/3 rule (Orszag 1971) and the third-order Runge–Kutta scheme of Shu and Osher (1988). Walls are a
porous medium that stops the fluid, f = −χu/η (volume penalisation: Angot, Bruneau and Fabrie 1999), so that ridges may have any
shape. The mean profile is pulled towards a shear, which keeps rolling up (Kelvin–Helmholtz). Dyes are carried along the flow at
the resolution of the picture (semi-Lagrangian, cubic), once a frame, so they hardly mix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from scipy import fft, ndimage

from ..errors import InputError
from .scenes import Scene, check_clip

__all__ = ["Flow", "turbulence"]

# lengths in frame heights, y from the top of the frame
CEILING, FLOOR, RIDGE = 0.09, 0.85, 0.045  # where the walls are, and how high their ridges
MARGIN = 0.06  # made above and below the frame, so that the camera may drift
SPEED = 0.0105  # of the two streams, per frame: nearly 3 pixels at 256 rows
LAYER = 0.04  # the thickness of the shear between them
SPIN_UP = 60  # frames of flow before the first
DYE = 0.4  # the concentration from which a pixel belongs to a dye: the eye sees an edge about here
CLEAR = (0.88, 0.86, 0.76)  # the fluid, red green blue
INKS = (2.0, 1.2, 0.45), (0.2, 1.4, 1.5)  # what the top and the bottom dye absorb


@dataclass(frozen=True)
class Flow:
    """The equations of a flow on a grid of `shape` (rows, columns) over a periodic box of `size` (height, width).

    The state is the spectrum of the vorticity, (rows, columns // 2 + 1) complex64. Its mean is always zero, so that place
    [0, 0] holds the mean velocity along x instead, which the vorticity does not know.
    """

    shape: tuple[int, int]
    size: tuple[float, float]
    viscosity: float = 0.0
    drag: np.ndarray | None = None  # χ/η: (rows, columns), per frame; 0 in the fluid
    shear: np.ndarray | None = None  # the state whose mean profile the flow is pulled to
    pull: float = 0.0  # how fast: per frame

    @cached_property
    def waves(self) -> tuple[np.ndarray, np.ndarray]:
        """kx (1, columns // 2 + 1) and ky (rows, 1), in radians per unit of length."""
        (rows, columns), (height, width) = self.shape, self.size
        kx, ky = fft.rfftfreq(columns, width / columns)[None], fft.fftfreq(rows, height / rows)[:, None]
        return np.float32(2 * np.pi * kx), np.float32(2 * np.pi * ky)

    @cached_property
    def _square(self) -> np.ndarray:
        kx, ky = self.waves
        return kx**2 + ky**2

    @cached_property
    def _kept(self) -> np.ndarray:
        kx, ky = (abs(k) for k in self.waves)
        return (kx < 2 / 3 * kx.max()) & (ky < 2 / 3 * ky.max())

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """x (1, columns) and y (rows, 1) of the grid points."""
        (rows, columns), (height, width) = self.shape, self.size
        return np.float32(width / columns) * np.arange(columns)[None], np.float32(height / rows) * np.arange(rows)[:, None]

    def state(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The state of a velocity field, two arrays (rows, columns); its divergent part is dropped."""
        kx, ky = self.waves
        u, v = fft.rfft2(np.float32(u)), fft.rfft2(np.float32(v))
        state = 1j * (kx * v - ky * u)
        state[0, 0] = u[0, 0]
        return state * self._kept

    def _velocity_spectrum(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kx, ky = self.waves
        square = self._square.copy()
        square[0, 0] = 1
        stream = state / square  # u = ∂ψ/∂y, v = −∂ψ/∂x, ω = −∇²ψ
        u, v = 1j * ky * stream, -1j * kx * stream
        u[0, 0] = state[0, 0]
        return u, v

    def velocity(self, state: np.ndarray, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(u, v), each of `shape`, by default the grid's; a finer one is interpolated exactly."""
        (rows, columns), (fine_rows, fine_columns) = self.shape, shape or self.shape
        half = rows // 2
        padded = np.zeros((2, fine_rows, fine_columns // 2 + 1), np.complex64)
        for finer, spectrum in zip(padded, self._velocity_spectrum(state), strict=True):
            finer[:half, : columns // 2] = spectrum[:half, : columns // 2]
            finer[-half:, : columns // 2] = spectrum[-half:, : columns // 2]
        u, v = fft.irfft2(padded * (fine_rows * fine_columns / (rows * columns)), s=(fine_rows, fine_columns))
        return u, v

    def rate(self, state: np.ndarray) -> np.ndarray:
        """∂state/∂t."""
        kx, ky = self.waves
        vorticity = state.copy()
        vorticity[0, 0] = 0
        u, v, w = fft.irfft2(np.stack([*self._velocity_spectrum(state), vorticity]), s=self.shape)
        force_x, force_y = v * w, -u * w
        if self.drag is not None:
            force_x -= self.drag * u
            force_y -= self.drag * v
        force_x, force_y = fft.rfft2(np.stack([force_x, force_y]))
        rate = 1j * (kx * force_y - ky * force_x)
        rate[0, 0] = force_x[0, 0]
        rate -= self.viscosity * self._square * state
        if self.shear is not None:
            rate[:, 0] += self.pull * (self.shear[:, 0] - state[:, 0])
        return rate * self._kept

    def run(self, state: np.ndarray, time: float) -> np.ndarray:
        """The state some time later, in equal steps short enough to be stable."""
        rows, columns = self.shape
        fastest = max(
            (abs(u) * n / size).max() for u, n, size in zip(self.velocity(state), (columns, rows), self.size[::-1], strict=True)
        )
        steps = math.ceil(time * max(fastest / 0.7, 1e-9))
        for _ in range(steps):
            state = self.step(state, time / steps)
        return state

    def step(self, state: np.ndarray, dt: float) -> np.ndarray:
        first = state + dt * self.rate(state)
        second = (3 * state + first + dt * self.rate(first)) / 4
        return (state + 2 * second + 2 * dt * self.rate(second)) / 3


def turbulence(
    seed: int = 0, frames: int = 120, height: int = 256, width: int = 480, fps: float = 25, pace: float = 1
) -> Scene:
    """The embedded clip: 1 top dye, 2 bottom dye, 3 bottom surface (auxiliary); walls, ridges and clear fluid are 0.

    On frame 0 the dyes are two bands, so that a box each is a good prompt. A longer clip begins like a shorter one; from about
    frame 200 on the dyes are stirred into threads of a few pixels. `pace`, up to 2, is how fast the flow goes: a clip of 1,000
    frames at 0.12 tells slowly what the usual one tells. `InputError` where the clip is empty or smaller than 64×64.
    """
    check_clip(seed, frames, height, width)
    if not 0 < pace <= 2:
        raise InputError("a pace above 0 and at most 2", pace, "1 is usual, less is slower")
    return Scene(
        name=f"turbulence-{seed:02d}", fps=fps, frames=frames, height=height, width=width,
        objects={1: "top dye", 2: "bottom dye", 3: "bottom surface"}, aux=(3,),
        make=lambda: _film(seed, frames, height, width, pace),
    )  # fmt: skip


def _smooth(value: np.ndarray, width: float) -> np.ndarray:
    """From 0 to 1 as `value` passes through zero, over about `width`."""
    return 0.5 + 0.5 * np.tanh(2 * value / width)


def _wave(rng: np.random.Generator, x: np.ndarray, waves: int, size: float) -> np.ndarray:
    """A random curve over x with period 1, of that root mean square."""
    weight, phase = rng.uniform(0.5, 1.5, waves), rng.uniform(size=waves)
    curve = (weight * np.cos(2 * np.pi * (np.arange(1, waves + 1) * x[..., None] + phase))).sum(-1)
    return size * np.sqrt(2 / (weight**2).sum()) * curve


def _noise(rng: np.random.Generator, shape: tuple[int, int], down: float, across: float) -> np.ndarray:
    """Periodic noise, mean 0 and deviation 1, smooth over so many pixels."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), (down, across), mode="wrap")
    return (noise - noise.mean()) / noise.std()


class _Channel:
    """What stands still: walls, ridges, light. Arrays are (tall, width): the frame with a margin above and below."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.margin = round(MARGIN * height)
        self.shape = tall, _ = height + 2 * self.margin, width
        self.size = tall / height, width / height
        self.pixel = 1 / height
        self.x, self.y = np.arange(width)[None] / width, (np.arange(tall)[:, None] - self.margin) / height
        depth = np.maximum(
            CEILING + self._ridges(rng) - self.y, self.y - FLOOR + self._ridges(rng)
        )  # in the walls; < 0 in the fluid
        self.solid = _smooth(depth, 2 * self.pixel).astype(np.float32)
        self.surface = _smooth(self.y - FLOOR - 0.02 + 0 * self.x, 2 * self.pixel).astype(np.float32)
        brushed = 1 + 0.1 * _noise(rng, self.shape, 0.5, 12)
        metal = 0.15 + 0.17 * np.exp(-((depth / 0.009 - 1) ** 2))  # light catches the edges of the ridges
        sheet = 0.52 - 0.22 * (self.y - FLOOR) / (1 - FLOOR)
        metal, sheet = (
            (v * brushed)[..., None] * tint for v, tint in ((metal, (1.02, 1.0, 0.94)), (sheet, (1.08, 0.98, 0.84)))
        )
        self.paint = (metal + self.surface[..., None] * (sheet - metal)).astype(np.float32)

    def _ridges(self, rng: np.random.Generator) -> np.ndarray:
        teeth = round(self.size[1] / 0.13)
        place = teeth * self.x + _wave(rng, self.x, 4, 0.2)
        return RIDGE * (1 + _wave(rng, self.x, 5, 0.12)) * abs(np.cos(np.pi * place)) ** 0.7

    def dyes(self, rng: np.random.Generator) -> np.ndarray:
        """(tall, width, 3) float32 in 0 … 1: concentration of the top and the bottom dye on frame 0, streaks in both."""
        above, below = CEILING + RIDGE, FLOOR - RIDGE
        middle = (above + below) / 2 + _wave(rng, self.x, 5, 0.015)
        above, below = above + 0.05 + _wave(rng, self.x, 9, 0.012), below - 0.05 + _wave(rng, self.x, 9, 0.012)
        bands = [
            _smooth(self.y - y0, 3 * self.pixel) * _smooth(y1 - self.y, 3 * self.pixel)
            for y0, y1 in ((above, middle - 0.02), (middle + 0.02, below))
        ]
        streaks = np.clip(0.5 + 0.25 * _noise(rng, self.shape, 0.012 / self.pixel, 0.08 / self.pixel), 0, 1)
        return np.stack([*bands, streaks], -1).astype(np.float32)

    def picture(self, dyes: np.ndarray) -> np.ndarray:
        """(tall, width, 3) float32, 1 is white: light from behind, through the dyes (Beer–Lambert) and past the walls."""
        strength = dyes[..., :2] * (0.65 + 0.7 * dyes[..., 2:])
        light = np.array(CLEAR, np.float32) * np.exp(-strength @ np.array(INKS, np.float32))
        floor = round(FLOOR / self.pixel) + self.margin
        rows = self.shape[0] - floor
        glow = cv2.blur(light[floor - rows : floor][::-1], (9, 9))  # the sheet mirrors what is above it
        paint = self.paint.copy()
        paint[floor:] *= 0.75 + 0.4 * glow
        return light + self.solid[..., None] * (paint - light)


def _start(rng: np.random.Generator, channel: _Channel) -> tuple[Flow, np.ndarray]:
    """The flow, and its state on frame 0. Its grid is 2.5 times as coarse as the picture's; large pictures share one."""
    coarser = 2.5 * max(1, 1 / (256 * channel.pixel))
    rows, columns = (2 * fft.next_fast_len(round(n / coarser / 2), real=True) for n in channel.shape)
    flow = Flow((rows, columns), channel.size)
    x, y = flow.grid()
    cell = channel.size[0] / rows
    solid = cv2.resize(channel.solid, (columns, rows), interpolation=cv2.INTER_AREA)
    u = SPEED * np.tanh(((CEILING + FLOOR) / 2 + MARGIN - y + 0 * x) / LAYER) * (1 - solid)
    shear = flow.state(u, 0 * u)
    flow = replace(flow, viscosity=0.11 * SPEED * cell, drag=solid / 0.6, shear=shear, pull=1 / 30)
    stream = _noise(rng, flow.shape, 0.03 / cell, 0.03 / cell) * (1 - solid)
    u, v = (0.45 * SPEED * d / d.std() for d in (np.gradient(stream, axis=0), -np.gradient(stream, axis=1)))
    return flow, flow.run(shear + flow.state(u, v), SPIN_UP)


def _film(seed: int, frames: int, height: int, width: int, pace: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    channel = _Channel(np.random.default_rng([seed, 1]), height, width)
    dyes = channel.dyes(np.random.default_rng([seed, 2]))
    flow, state = _start(np.random.default_rng([seed, 3]), channel)
    camera = _Camera(np.random.default_rng([seed, 4]), height, width)
    for t in range(frames):
        shares = np.dstack([dyes[..., :2] * (1 - channel.solid[..., None]), channel.surface])
        yield camera.shoot(t, channel.picture(dyes), shares)
        if t + 1 < frames:
            state = flow.run(state, pace if t else pace / 2)  # half a frame ahead: midway along the dyes' path
            dyes = carry(dyes, *(pace / channel.pixel * a for a in flow.velocity(state, channel.shape)))


def carry(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`image` (H, W, C) float32 in 0 … 1, periodic, carried for one frame by the velocity (u, v), (H, W) pixels per frame."""
    y, x = np.indices(u.shape, np.float32)
    u, v = u.astype(np.float32), v.astype(np.float32)
    halfway = cv2.remap(np.dstack([u, v]), x - u / 2, y - v / 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    carried = cv2.remap(image, x - halfway[..., 0], y - halfway[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
    return np.clip(carried, 0, 1)  # cubic interpolation overshoots at edges; the clip keeps them sharp


class _Camera:
    """An old film camera: it drifts, its colours wander, its light is uneven, its film has grain and dust."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.size = rng, (width, height)
        self.drift, self.colour = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, 2 * np.pi, 3)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        spot = np.exp(-((x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2) / 1.5)
        self.light = ((0.78 + 0.3 * spot) * (1 - 0.13 * (x**2 + y**2))).astype(np.float32)[..., None]

    def shoot(self, t: int, picture: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One exposure: the picture as (H, W, 3) uint8 and, seen from the same place, the labels (H, W) uint8.

        `shares` is (tall, width, N) float32, how much of each object is in a pixel.
        """
        move = self._place(t, picture.shape[0] - self.size[1])
        picture, shares = (
            cv2.warpAffine(a, move, self.size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP)
            for a in (picture, shares)
        )
        planes = np.stack(cv2.split(shares))
        labels = np.where(planes.max(0) > DYE, planes.argmax(0) + 1, 0).astype(np.uint8)
        return self._expose(t, picture), labels

    def _place(self, t: int, spare: int) -> np.ndarray:
        """The affine map (2, 3) from the frame's pixels to the channel's."""
        width, height = self.size
        across, down, turn = np.sin(2 * np.pi * t / np.array([190, 140, 230]) + self.drift)
        weave = self.rng.normal(0, 0.0006 * height, 2)  # the film is never quite still in its gate
        move = cv2.getRotationMatrix2D((width / 2, height / 2), 0.35 * turn, 1)
        move[:, 2] += (0.025 * height * across + weave[0], spare / 2 + 0.2 * spare / 2 * down + weave[1])
        return move

    def _expose(self, t: int, picture: np.ndarray) -> np.ndarray:
        width, height = self.size
        colour = 1 + 0.035 * np.sin(2 * np.pi * t / np.array([160, 210, 120]) + self.colour) + self.rng.normal(0, 0.008)
        picture = cv2.GaussianBlur(picture, (0, 0), 0.0025 * height + 0.1) * (0.93 * self.light * np.float32(colour))
        grain = self.rng.standard_normal((height, width, 3), np.float32)
        grain = cv2.GaussianBlur(grain + grain[..., :1], (0, 0), 0.5)
        picture += 0.045 + 0.026 * grain
        for _ in range(self.rng.poisson(0.4)):  # dust
            at, axes = self.rng.integers((width, height)), 1 + self.rng.integers(0, (2 + height // 100, 2))
            dust = float(self.rng.choice([0.15, 0.8]))
            cv2.ellipse(picture, at.tolist(), axes.tolist(), self.rng.uniform(0, 180), 0, 360, (dust,) * 3, -1, cv2.LINE_AA)
        return np.clip(255 * picture, 0, 255).astype(np.uint8)
