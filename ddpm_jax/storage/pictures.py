"""Pictures: images side by side in a grid, saved as PNG files."""

import io
import math
import os

import numpy as np
from jaxtyping import UInt8

from ddpm_jax.storage.paths import run_path, write_bytes

Pixels = UInt8[np.ndarray, "batch height width channels"]

# A cell of a grid is enlarged to at least this many screen pixels, to be seen with the naked eye.
CELL = 48
GAP = 2
LIGHT = 230

# Pillow's name for an image of this many channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def grid(images: Pixels, columns: int | None = None, scale: int | None = None) -> UInt8[np.ndarray, "H W channels"]:
    """The images row by row in one picture, with light gaps between them.

    Of images with other than 1, 3 or 4 channels, the first channel is shown.  columns: None for about as many
    as rows.  scale: how many times each image is enlarged (nearest neighbour); None for the smallest that
    makes a cell 48 pixels wide and high.
    """
    images = np.asarray(images)
    if images.shape[-1] not in MODES:
        images = images[..., :1]
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = math.ceil(CELL / min(height, width)) if scale is None else scale
    for name, value in (("number of images", count), ("columns", columns), ("scale", scale)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    rows, columns = math.ceil(count / columns), min(columns, count)
    height, width = height * scale + GAP, width * scale + GAP
    cells = np.full((rows * columns, height, width, channels), LIGHT, np.uint8)
    cells[:count, GAP:, GAP:] = images.repeat(scale, axis=1).repeat(scale, axis=2)
    picture = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return np.pad(
        picture.reshape(rows * height, columns * width, channels), ((0, GAP), (0, GAP), (0, 0)), constant_values=LIGHT
    )


def png(picture: UInt8[np.ndarray, "H W channels"], optimize: bool = False) -> bytes:
    """A picture with 1 (grey), 3 (RGB) or 4 (RGBA) channels as a PNG file; `optimize` makes it smaller, but slowly."""
    from PIL import Image

    channels = picture.shape[-1]
    if channels not in MODES:
        raise ValueError(f"the picture has shape {picture.shape}; a PNG has 1, 3 or 4 channels, the last axis")
    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if channels == 1 else picture).save(file, format="PNG", optimize=optimize)
    return file.getvalue()


def save_png(path: str | os.PathLike[str], picture: UInt8[np.ndarray, "H W channels"]) -> None:
    """Write a picture with 1 (grey), 3 (RGB) or 4 (RGBA) channels as a PNG file.

    Missing folders are made; a reader sees the old file or the new one, never half of it.
    """
    write_bytes(run_path(path), png(picture))
