"""Between masks and the logits that SAM speaks: boxes, mask prompts and their inverse, holes, islands, the merge to labels.

Logits are float32, > 0 is the object. Two geometries lead from an image of (H, W) pixels to a square network input of `size`:
SAM keeps the aspect ratio, long side to `size`, and pads right and bottom (`pad=True`); SAM 2's image model squashes the
image to the square (`pad=False`). The low-resolution grid, `low`, is a quarter of the input: 256 for 1024.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import numpy as np
from PIL import Image

from .errors import InputError
from .prompts import Box

__all__ = [
    "fill_holes",
    "input_shape",
    "logits_to_mask",
    "lowres_to_image",
    "mask_to_box",
    "mask_to_logits",
    "merge",
    "remove_islands",
]


def mask_to_box(mask: np.ndarray) -> Box | None:
    """The tight box of an (H, W) mask, x1 and y1 exclusive; None where the mask is empty, which has no box."""
    mask = _two_dimensional(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def input_shape(shape: tuple[int, int], size: int = 1024, pad: bool = True) -> tuple[int, int]:
    """(height, width) of an image of `shape` in a network input of `size`, before padding; halves round up, as in SAM."""
    if not pad:
        return size, size
    scale = size / max(shape)
    return max(1, int(shape[0] * scale + 0.5)), max(1, int(shape[1] * scale + 0.5))


def mask_to_logits(mask: np.ndarray, size: int = 1024, low: int = 256, strength: float = 18.0, pad: bool = True) -> np.ndarray:
    """An (H, W) mask as SAM's mask prompt: (low, low) float32, +`strength` on the object, −`strength` elsewhere.

    Resized to the network's input as SAM resizes an image of zeros and ones (`ResizeLongestSide.apply_image`: PIL's bilinear
    filter on 8 bits, so it stays 0 or 1), padded with zeros, resized bilinearly (align_corners=False) to the low-resolution
    grid; every cell above 0 is the object. SAM was trained on logits: zeros and ones would say "undecided" and "barely".
    """
    mask = _two_dimensional(mask) != 0
    height, width = input_shape(mask.shape, size, pad)
    resized = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    square = np.zeros((size, size), np.float32)
    square[:height, :width] = resized
    return np.where(_resize(square, (low, low)) > 0, np.float32(strength), np.float32(-strength))


def lowres_to_image(logits: np.ndarray, shape: tuple[int, int], size: int = 1024, pad: bool = True) -> np.ndarray:
    """Low-resolution logits (…, low, low) at the size of the image: (…, H, W) float32 for `shape` = (H, W).

    The inverse of the geometry of `mask_to_logits`, bilinear throughout. Padded: to the input size, the padding cut off, to the
    image; squashed: straight to the image.
    """
    logits = np.asarray(logits, np.float32)
    if logits.ndim > 2:
        flat = [lowres_to_image(one, shape, size, pad) for one in logits.reshape(-1, *logits.shape[-2:])]
        return np.reshape(flat, (*logits.shape[:-2], *shape)).astype(np.float32)
    if not pad:
        return _resize(logits, shape)
    height, width = input_shape(shape, size)
    return _resize(_resize(logits, (size, size))[:height, :width], shape)


def logits_to_mask(logits: np.ndarray, shape: tuple[int, int], size: int = 1024, pad: bool = True) -> np.ndarray:
    """The inverse of `mask_to_logits`: (…, low, low) logits to (…, H, W) bool, up to what the small grid cannot hold."""
    return lowres_to_image(logits, shape, size, pad) > 0


def fill_holes(logits: np.ndarray, area: int | bool = True, value: float = 0.1) -> np.ndarray:
    """(H, W) or (N, H, W) logits with holes set to `value`: 8-connected parts of `logits <= 0` of at most `area` pixels.

    A number is SAM 2's rule (`fill_holes_in_mask_scores`), which counts a small part at the border as a hole like any other.
    True means every part, however large, that does not touch the border: what a person calls a hole. False or 0: nothing.
    """
    return _set_parts(logits, area, value, lambda plane: plane <= 0)


def remove_islands(logits: np.ndarray, area: int, value: float = -0.1) -> np.ndarray:
    """(H, W) or (N, H, W) logits with islands set to `value`: 8-connected parts of `logits > 0` of at most `area` pixels."""
    if area is True:
        raise InputError("the area of an island in pixels", "True", "give a number: unlike a hole, an island has no other mark")
    return _set_parts(logits, area, value, lambda plane: plane > 0)


def merge(
    logits: np.ndarray, ids: Sequence[int], threshold: float = 0.0, aux: Collection[int] = (), keep_aux: bool = False
) -> np.ndarray:
    """One label map (H, W) uint8 from logits (N, H, W), one plane per object in the order of `ids`.

    The label is the object with the highest logit where any exceeds `threshold`, else 0; equal logits go to the lowest id.
    Auxiliary objects compete like the others and then become background, unless `keep_aux`.
    """
    logits, ids = np.asarray(logits), np.asarray(ids, np.uint8)
    if logits.ndim != 3 or len(logits) != len(ids):
        raise InputError(f"logits (N, H, W) for {len(ids)} objects", f"shape {logits.shape}", "stack one plane per id")
    if not len(ids):
        return np.zeros(logits.shape[1:], np.uint8)
    order = np.argsort(ids)
    logits, ids = logits[order], ids[order]
    labels = np.where(logits.max(axis=0) > threshold, ids[logits.argmax(axis=0)], np.uint8(0))
    return labels if keep_aux else np.where(np.isin(labels, list(aux)), np.uint8(0), labels)


def _set_parts(logits: np.ndarray, area: int | bool, value: float, inside) -> np.ndarray:
    logits = np.asarray(logits, np.float32)
    if area < 0:
        raise InputError("an area of 0 pixels or more", area, "give the largest area to change, or True for holes of any size")
    if logits.ndim == 3:
        return np.reshape([_set_parts(plane, area, value, inside) for plane in logits], logits.shape).astype(np.float32)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside(logits).astype(np.uint8), connectivity=8)
    if area is True:
        chosen = np.ones(count, bool)
        chosen[np.concatenate((parts[0], parts[-1], parts[:, 0], parts[:, -1]))] = False
    else:
        chosen = stats[:, cv2.CC_STAT_AREA] <= area
    chosen[0] = False  # what lies outside of all parts
    return np.where(chosen[parts], np.float32(value), logits)


def _resize(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear with pixel centres at halves and no smoothing: torch's `interpolate(align_corners=False)`."""
    return cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _two_dimensional(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError("a mask of shape (H, W)", f"shape {mask.shape}", "give one object's mask, one channel")
    return mask
