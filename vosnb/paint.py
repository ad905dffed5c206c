"""The colours of objects, and label maps painted over frames."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageColor

from .errors import InputError
from .prompts import check_id

__all__ = ["Color", "brighter", "check_image", "davis_palette", "layer", "overlay", "with_colors"]

Color = str | tuple[int, int, int]  # a name or "#rrggbb", or (r, g, b) from 0 to 255


def davis_palette() -> np.ndarray:
    """The PASCAL VOC / DAVIS colour map, (256, 3) uint8 RGB: bits 0, 1, 2 of the id are the top bits of R, G, B, and so on."""
    ids = np.arange(256)[:, None]
    channels = np.arange(3)
    return sum(((ids >> (3 * k + channels)) & 1) << (7 - k) for k in range(3)).astype(np.uint8)


def with_colors(colors: Mapping[int, Color] | None) -> np.ndarray:
    """The DAVIS palette, (256, 3) uint8, but for `colors`: {1: "blue", 2: "#ff0000", 3: (0, 128, 0)}."""
    palette = davis_palette()
    for obj, color in (colors or {}).items():
        obj = check_id(obj)
        try:
            palette[obj] = ImageColor.getrgb(color)[:3] if isinstance(color, str) else color
        except (ValueError, TypeError, OverflowError):
            raise InputError(
                "a colour's name, '#rrggbb' or (r, g, b) up to 255", repr(color), f"correct the colour of object {obj}"
            ) from None
    return palette


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    colors: Mapping[int, Color] | None = None,
    alpha: float = 0.5,
    contour: bool = True,
) -> np.ndarray:
    """The label map (H, W) over the image (H, W, 3) uint8 RGB, as a new image; background pixels stay as they are.

    Objects have the colour of their id in the DAVIS palette unless `colors` says otherwise ({1: "blue"}); `alpha` is
    the share of the colour, 0 … 1. `contour` draws a brighter line along the inside of each edge, 1 pixel wide, 2 from 480
    lines on, and so forth.
    """
    import cv2

    image, labels = check_image(image), np.asarray(labels)
    if labels.shape != image.shape[:2] or labels.dtype not in (np.uint8, bool):
        raise InputError(
            f"labels (H, W) uint8 of shape {image.shape[:2]}", f"{labels.shape} {labels.dtype}", "use the mask of this frame"
        )
    if not 0 <= alpha <= 1:
        raise InputError("alpha from 0 (invisible) to 1 (opaque)", alpha, "0.5 is usual")
    labels = np.ascontiguousarray(labels, np.uint8)
    result = image.copy()
    x, y, w, h = cv2.boundingRect(labels)
    line = 1 + min(labels.shape) // 480  # pixels
    part = np.s_[max(0, y - line) : y + h + line, max(0, x - line) : x + w + line]  # the rest need not be touched
    labels, target, palette = np.ascontiguousarray(labels[part]), result[part], with_colors(colors)[:, None]
    cv2.copyTo(cv2.addWeighted(target, 1 - alpha, cv2.applyColorMap(labels, palette), alpha, 0), labels, target)
    if contour:
        element = np.ones((2 * line + 1, 2 * line + 1), np.uint8)
        edge = (cv2.erode(labels, element) != labels) | (cv2.dilate(labels, element) != labels)
        cv2.copyTo(cv2.applyColorMap(labels, brighter(palette)), (edge & (labels > 0)).astype(np.uint8), target)
    return result


def layer(labels: np.ndarray, colors: Mapping[int, Color]) -> bytes:
    """A label map (H, W) uint8 as an indexed PNG to lay over its frame: objects translucent, their edges opaque (where no id is above
    127). A tenth of the size of an RGBA picture, and quicker by more."""
    import cv2

    palette, alpha = with_colors(colors), np.where(np.arange(256) > 0, 115, 0).astype(np.uint8)
    if labels.max() < 128:
        edge = (cv2.erode(labels, np.ones((3, 3), np.uint8)) != labels) & (labels > 0)
        labels = labels + np.where(edge, np.uint8(128), np.uint8(0))
        palette[128:], alpha[128:] = palette[:128], 255
    image = Image.fromarray(labels)
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, transparency=alpha.tobytes())
    return file.getvalue()


def brighter(palette: np.ndarray) -> np.ndarray:
    """The palette for lines: DAVIS's first colours are dark."""
    return (palette * 1.9).clip(max=255).astype(np.uint8)


def check_image(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB, contiguous; `InputError` for anything else."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError("an image (H, W, 3) uint8 RGB", f"shape {image.shape}, {image.dtype}", "convert it first")
    return np.ascontiguousarray(image)
