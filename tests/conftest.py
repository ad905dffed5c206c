"""What several test files need: small clips made on the spot, and the real footage beside the checkout, where it is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real footage and reference values; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared: real footage and reference values are not part of the project")
    return SHARED


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: small networks are quicker so, and give the same numbers on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """(H, W) bool, a disc around (x, y)."""
    yy, xx = np.mgrid[:height, :width]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


@pytest.fixture(scope="session")
def moving() -> tuple[np.ndarray, np.ndarray]:
    """12 frames (12, 96, 128, 3) uint8 of two textured discs on a textured ground, moving 2 pixels a frame; labels (12, 96, 128)."""
    rng = np.random.default_rng(0)

    def texture(color: tuple[int, int, int], h: int, w: int) -> np.ndarray:
        coarse = gaussian_filter(rng.standard_normal((h, w)), 2)
        return np.clip(np.array(color) + 30 * (coarse / coarse.std())[..., None], 0, 255).astype(np.uint8)

    ground, one, two = texture((90, 90, 90), 96, 128), texture((200, 60, 60), 33, 33), texture((60, 80, 220), 33, 33)
    images, labels = np.repeat(ground[None], 12, 0), np.zeros((12, 96, 128), np.uint8)
    shape = disc(33, 33, 16, 16, 15)
    for t in range(12):
        for obj, (patch, x, y) in {1: (one, 20 + 2 * t, 10), 2: (two, 80 - 2 * t, 55)}.items():
            images[t, y : y + 33, x : x + 33][shape] = patch[shape]
            labels[t, y : y + 33, x : x + 33][shape] = obj
    return images, labels
