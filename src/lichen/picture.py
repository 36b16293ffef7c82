"""Picture: what a stream holds, and its way from and to Pillow images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lichen.errors import ImageError

SIDE_MAX = 65535
EXIF_PREFIX = b"Exif\0\0"  # how JPEG marks it; streams hold the TIFF structure alone, as PNG does


class ImageNotice(UserWarning):
    """A picture was converted before coding: 16 bits to 8, CMYK to RGB."""


@dataclass(frozen=True, eq=False)
class Picture:
    """8-bit pixels and what travels with them.

    pixels: uint8 (H, W, 3), or (H, W, 1) for grey. alpha: uint8 (H, W) or None.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """Pixels as (H, W, 3), which the networks code; grey is three equal planes."""
        return np.broadcast_to(self.pixels, (*self.pixels.shape[:2], 3))


def check(picture: Picture) -> None:
    """Raise ImageError unless a stream can hold this Picture, which may be anybody's."""
    pixels, alpha = picture.pixels, picture.alpha
    found = f"{getattr(pixels, 'dtype', type(pixels))} {getattr(pixels, 'shape', '')}"
    whole = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3
    if not whole or pixels.shape[2] not in (1, 3):
        raise ImageError(f"pixels must be uint8 (H, W, 3), or (H, W, 1) for grey, not {found}")
    _check_size(picture.width, picture.height)
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]):
        raise ImageError(
            f"alpha must be uint8 {pixels.shape[:2]} as the pixels are, not {alpha.dtype} "
            f"{alpha.shape}"
        )
    for name in ("icc", "exif", "xmp"):
        if not isinstance(getattr(picture, name), bytes):
            raise ImageError(f"{name} must be bytes, not {type(getattr(picture, name)).__name__}")


def grey_of_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) -> (H, W, 1): (R + 2 G + B + 2) >> 2, as docs/stream.md defines decoded grey."""
    wide = pixels.astype(np.uint16)
    grey = (wide[..., 0] + 2 * wide[..., 1] + wide[..., 2] + 2) >> 2
    return grey.astype(np.uint8)[..., None]


def from_array(array: NDArray[np.uint8]) -> Picture:
    """Take uint8 (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA. Raises ImageError."""
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ImageError(
            f"an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), not {array.dtype} {shape}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] not in (1, 3, 4):
        raise ImageError(f"an array must have 1, 3 or 4 channels, not {array.shape[2]}")
    _check_size(array.shape[1], array.shape[0])
    if array.shape[2] == 4:
        return Picture(array[..., :3], np.ascontiguousarray(array[..., 3]))
    return Picture(array)


def from_image(image: Image.Image) -> Picture:
    """Take a Pillow image of any mode; warns (ImageNotice) where depth or colour is reduced.

    Of an animation, the first frame. Raises ImageError for a size or mode that a stream cannot
    hold, and what Pillow raises where the file of the image is damaged.
    """
    _check_size(image.width, image.height)
    # Pillow reduces colours of 16 bits by itself; until it loads, the raw mode tells.
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if getattr(image, "is_animated", False):
        warnings.warn("the picture has several frames: only the first is coded", ImageNotice, 2)
    image.load()  # metadata may follow the pixels in the file
    info, mode = image.info, image.mode
    icc = _bytes(info.get("icc_profile"))
    exif = _bytes(info.get("exif")).removeprefix(EXIF_PREFIX)
    xmp = _bytes(info.get("xmp", info.get("XML:com.adobe.xmp")))  # the latter: PNG, old Pillow
    if mode.startswith("I") or mode == "F":
        return Picture(_deep_to_8(image), None, icc, exif, xmp)
    if deep:
        warnings.warn("16 bits: reduced to 8 bits; lichen codes 8 bits", ImageNotice, 2)
    transparent = image.has_transparency_data
    if mode == "P":
        image = image.convert("RGBA" if transparent else "RGB")
    elif mode in ("1", "L", "RGB") and transparent:
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    elif mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        if mode not in ("YCbCr", "RGBX"):
            warnings.warn(
                f"{mode} was converted to RGB; its colour profile is dropped", ImageNotice, 2
            )
            icc = b""
        image = image.convert("RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise ImageError(f"a picture must be grey, RGB or RGBA, not {mode}; convert it first")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if image.mode in ("LA", "RGBA"):
        alpha = np.ascontiguousarray(array[..., -1])
        return Picture(np.ascontiguousarray(array[..., :-1]), alpha, icc, exif, xmp)
    return Picture(array, None, icc, exif, xmp)


def to_image(picture: Picture) -> Image.Image:
    """Make a Pillow image: L, LA, RGB or RGBA, with ICC, EXIF and XMP in `info`."""
    array = picture.pixels
    if picture.alpha is not None:
        array = np.concatenate([array, picture.alpha[..., None]], axis=2)
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    exif = EXIF_PREFIX + picture.exif if picture.exif else b""  # as all of Pillow's writers take it
    for key, value in (("icc_profile", picture.icc), ("exif", exif), ("xmp", picture.xmp)):
        if value:
            image.info[key] = value
    return image


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= SIDE_MAX and 1 <= height <= SIDE_MAX):
        raise ImageError(
            f"a picture must be 1..{SIDE_MAX} pixels on each side, not {width}x{height}; "
            "scale it or cut it in parts"
        )


def _deep_to_8(image: Image.Image) -> NDArray[np.uint8]:
    """Reduce a picture of 16 or 32 bits, or of floats, to grey of 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = 65535.0
    if image.mode == "F":
        top = 1.0 if values.max() <= 1.0 else 255.0
    warnings.warn(f"{image.mode}: reduced to 8 bits; lichen codes 8 bits", ImageNotice, 3)
    grey = np.clip(np.round(values * (255.0 / top)), 0, 255)
    return grey.astype(np.uint8)[..., None]


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else b""
