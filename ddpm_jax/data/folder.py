"""A folder of image files as a source."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from ddpm_jax.data.sources import Example, check_choice, pixels_of
from ddpm_jax.paths import local_path

Fit = Literal["cover", "stretch", "crop"]
Resample = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
# What Pillow opens that is no picture, or not without another program.
NO_IMAGES = {".bufr", ".emf", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".pdf", ".ps", ".wmf"}


@cache
def extensions() -> frozenset[str]:
    """The endings of the image files that Pillow reads."""
    from PIL import Image

    Image.init()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN) - NO_IMAGES


@dataclass(frozen=True)
class Folder:
    """The image files of a folder and its sub-folders, in the order of their names.

    Photographs are turned upright as their EXIF data say, transparent parts are laid over white, and of an
    animation the first frame is taken.  Hidden files are passed over.
    """

    path: str
    """The folder."""
    size: int | None = None
    """Images become size x size pixels; None: they stay as they are, and must all have one size."""
    fit: Fit = "cover"
    """How they become square: cover: the largest centred square, resized; stretch: height and width resized
    each for itself; crop: the centre, not resized."""
    resample: Resample = "lanczos"
    """The filter that resizes; all but nearest smooth when they make an image smaller."""
    channels: Literal[1, 3] | None = None
    """1 converts all to grey, 3 all to RGB; None: they stay as they are, and must all be grey or all colour."""
    labels: bool = False
    """Whether the sub-folders of the folder are classes, numbered in the order of their names."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1 pixel, or None to leave the size as it is")
        check_choice("fit", self.fit, Fit)
        check_choice("resample", self.resample, Resample)
        if self.channels not in (1, 3, None):
            raise ValueError(f"channels is {self.channels}; expected 1, 3 or None")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order of the examples."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"path is {self.path!r}; there is no such folder")
        found = sorted(
            file
            for file in self._root.rglob("*")
            if file.suffix.lower() in extensions() and not any(part.startswith(".") for part in self._parts(file))
        )
        if not found:
            kinds = " ".join(sorted(extensions()))
            raise ValueError(f"path is {self.path!r}, where no image was found; looked for files ending in {kinds}")
        return tuple(found)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes 0, 1, ...: the sub-folders."""
        for file in self.files:
            if len(self._parts(file)) < 2:
                raise ValueError(f"labels is True, but {file} is in no sub-folder; move it into that of its class")
        return tuple(sorted({self._parts(file)[0] for file in self.files}))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def declared_shape(self) -> tuple[int, ...] | None:
        """The images' shape, where size and channels give it before any file is read; None where they do not."""
        return None if self.size is None or self.channels is None else (self.size, self.size, self.channels)

    def __getitem__(self, index: int) -> Example:
        file = self.files[index]
        image = self._read(file)
        if image.shape != self._shape:
            raise ValueError(self._mixed(file, image.shape))
        if not self.labels:
            return {"image": image}
        return {"image": image, "label": np.int32(self.class_names.index(self._parts(file)[0]))}

    @cached_property
    def _root(self) -> Path:
        return local_path(self.path)

    def _parts(self, file: Path) -> tuple[str, ...]:
        return file.relative_to(self._root).parts

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return self._read(self.files[0]).shape

    def _mixed(self, file: Path, shape: tuple[int, ...]) -> str:
        first = self.files[0]
        if shape[2] != self._shape[2]:
            return (
                f"channels is None, but {file} has {shape[2]} and {first} has {self._shape[2]}; "
                "channels=3 (--data.channels 3) converts all to RGB, channels=1 all to grey"
            )
        return (
            f"size is None, but {file} is {shape[0]}x{shape[1]} pixels and {first} is "
            f"{self._shape[0]}x{self._shape[1]}; size=64 (--data.size 64) makes all 64x64"
        )

    def _read(self, file: Path) -> UInt8[np.ndarray, "height width channels"]:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                image = _eight_bits(ImageOps.exif_transpose(opened), self.channels)
        except Exception as error:
            raise ValueError(f"{file} cannot be read as an image ({error}); repair it or delete it") from None
        filter = Image.Resampling[self.resample.upper()]
        if self.size is None:
            pass
        elif self.fit == "stretch":
            image = image.resize((self.size, self.size), filter)
        elif self.fit == "cover":
            image = ImageOps.fit(image, (self.size, self.size), filter)
        elif min(image.size) < self.size:
            raise ValueError(
                f"fit is 'crop' and size is {self.size}, but {file} is {image.height}x{image.width} pixels; "
                f"give a size of at most {min(image.size)}, or fit='cover' to resize"
            )
        else:
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        return pixels_of(image)


def _eight_bits(image: Any, channels: int | None) -> Any:
    """A Pillow image in mode L (1 channel) or RGB (3); None: the one it is stored in."""
    from PIL import Image

    if image.mode[0] in "IF":
        raise ValueError(f"it has more than 8 bits a channel, Pillow's mode {image.mode}: convert it to 8 bits")
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
