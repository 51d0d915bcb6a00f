"""A folder of image files as a source."""

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from ddpm_jax.data.source import Example
from ddpm_jax.data.sources import check_choice, pixels_of
from ddpm_jax.data.tree import files_below, sub_folders
from ddpm_jax.errors import check_fields, require, require_int
from ddpm_jax.storage.paths import local_path

Fit = Literal["cover", "stretch", "crop"]
Resample = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]

__all__ = ["Fit", "Folder", "Resample", "extensions", "say_once"]

# Formats that Pillow opens that are not pictures, or that need another program.
NO_IMAGES = {".bufr", ".emf", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".pdf", ".ps", ".wmf"}
# Formats with 16 bits in Pillow's mode I.
SIXTEEN_BITS = {"PNG", "PPM"}
# Names of sub-folders that are splits of a data set, not classes.
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


@cache
def extensions() -> frozenset[str]:
    """The suffixes of the image files that Pillow reads."""
    from PIL import Image

    Image.init()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN) - NO_IMAGES


@dataclass(frozen=True)
class Folder:
    """The image files of a folder and its sub-folders, in the order of their names.

    Photographs are turned upright by their EXIF data, transparent parts become white, and only the first frame of an
    animation is read.  Grey images of 16 bits become 8 bits, round(value / 257).  Symbolic links are followed; hidden
    files are left out.
    """

    axes_are_known: ClassVar[bool] = True

    path: str
    """The folder."""
    size: int | None = None
    """The height and width of the result; None: images keep their size, which must be the same for all."""
    fit: Fit = "cover"
    """How images become square.  cover: the largest centred square is resized; stretch: height and width are resized
    independently; crop: the centre is cut out, without resizing."""
    resample: Resample = "lanczos"
    """The resampling filter; all but nearest smooth images that become smaller."""
    channels: Literal[1, 3] | None = None
    """1: images become grey; 3: RGB; None: they stay as they are, and must all be grey or all in colour."""
    labels: bool = False
    """Whether the sub-folders, including empty ones, are classes, numbered in the order of their names."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size is not None:
            require_int("size", self.size, 1, "at least 1 pixel, a whole number, or None to leave the size as it is")
        check_choice("fit", self.fit, Fit)
        check_choice("resample", self.resample, Resample)
        require("channels", self.channels, self.channels in (1, 3, None), "1, 3 or None")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order of the examples."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"path is {self.path!r}; there is no such folder")
        kinds = extensions()
        found = files_below(self._root, lambda name: Path(name).suffix.lower() in kinds, by_class=self.labels)
        if not found:
            kinds = " ".join(sorted(kinds))
            raise ValueError(f"path is {self.path!r}, which holds no images; expected files ending in {kinds}")
        return tuple(found)

    @property
    def content_files(self) -> dict[str, Path]:
        """The files by their paths below the folder."""
        return {file.relative_to(self._root).as_posix(): file for file in self.files}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes 0, 1, ...: the sub-folders.  A sub-folder without images keeps its number.

        Raises ValueError if an image is in no sub-folder, or if the classes are one level deeper.
        """
        below: dict[str, set[str]] = {}
        for file in self.files:
            parts = self._parts(file)
            if len(parts) < 2:
                raise ValueError(f"labels is True, but {file} is in no sub-folder; move it into that of its class")
            below.setdefault(parts[0], set()).add(parts[1] if len(parts) > 2 else "")
        found = (folder.name for folder in sub_folders(self._root))
        names = tuple(name for name in found if name in below or name != "__MACOSX")
        if (len(names) == 1 or set(below) <= SPLITS) and not any("" in deeper for deeper in below.values()):
            classes, first = ", ".join(sorted(below)), min(below)
            inside = ", ".join(sorted(below[first])[:5])
            raise ValueError(
                f"labels is True and path is {self.path!r}, so the classes would be {classes}, but these folders hold "
                f"no images themselves; {first} holds the folders {inside}. If those are the classes, path is "
                f"{str(Path(self.path) / first)!r}"
            )
        if empty := [name for name in names if name not in below]:
            found = f"{self._root} has class folders without images: {', '.join(empty)}"
            say_once(f"{found}. They keep their numbers, so there are {len(names)} classes")
        return names

    def __len__(self) -> int:
        return len(self.files)

    @property
    def declared_shape(self) -> tuple[int, ...] | None:
        """The shape of the images if size and channels determine it before any file is read; otherwise None."""
        return None if self.size is None or self.channels is None else (self.size, self.size, self.channels)

    def __getitem__(self, index: int) -> Example:
        image = self.read(index)
        if image.shape != self._shape:
            raise ValueError(self._mixed(index, image.shape))
        return {"image": image, "label": self.label(index)} if self.labels else {"image": image}

    @cached_property
    def _numbers(self) -> dict[str, np.int32]:
        return {name: np.int32(number) for number, name in enumerate(self.class_names)}

    def label(self, index: int) -> np.int32:
        """The class number of image `index`."""
        return self._numbers[self._parts(self.files[index])[0]]

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Image `index`, which may have another shape than image 0."""
        from PIL import Image, ImageOps

        file = self.files[index]
        try:
            with Image.open(file) as opened:
                upright = ImageOps.exif_transpose(opened)
                upright.format = opened.format
                image = _eight_bits(upright, self.channels, self.path)
        except Exception as error:
            raise ValueError(f"{file} cannot be read as an image ({error}); repair it or delete it") from None
        size, filter = self.size, Image.Resampling[self.resample.upper()]
        if size is None:
            return pixels_of(image)
        if self.fit == "stretch":
            return pixels_of(image.resize((size, size), filter))
        if self.fit == "cover":
            return pixels_of(ImageOps.fit(image, (size, size), filter))
        if min(image.size) < size:
            found = f"fit is 'crop' and size is {size}, but {file} is {image.height}x{image.width} pixels"
            raise ValueError(f"{found}; expected a size of at most {min(image.size)}, or fit='cover' to resize")
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return pixels_of(image.crop((left, top, left + size, top + size)))

    @cached_property
    def _root(self) -> Path:
        return local_path(self.path)

    def _parts(self, file: Path) -> tuple[str, ...]:
        return file.relative_to(self._root).parts

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return self.read(0).shape

    def _mixed(self, index: int, shape: tuple[int, ...]) -> str:
        (height, width, channels), file, first = self._shape, self.files[index], self.files[0]
        if shape[2] != channels:
            remedy = "channels=3 (--data.channels 3) converts all to RGB, channels=1 all to grey"
            return f"channels is None, but {file} has {shape[2]} and {first} has {channels}; {remedy}"
        found = f"{file} is {shape[0]}x{shape[1]} pixels and {first} is {height}x{width}"
        return f"size is None, but {found}; size=64 (--data.size 64) makes all 64x64"


def _eight_bits(image: Any, channels: int | None, folder: str) -> Any:
    """A Pillow image of `folder` in mode L (1 channel) or RGB (3); None: the nearer of the two."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        say_once(f"{folder} has grey images of 16 bits: they are converted to 8 bits, round(value / 257)")
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if image.mode[0] in "IF":
        kind = f"{'32-bit integers' if image.mode[0] == 'I' else 'floats'}, Pillow's mode {image.mode}"
        raise ValueError(f"its values are {kind}, whose range is not known: convert it to 8 bits")
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "LAB":
        image = _rgb_of_lab(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _rgb_of_lab(image: Any) -> Any:
    """An image of mode LAB in RGB; Pillow converts LAB by colour profiles only."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")


@cache
def say_once(text: str) -> None:
    """Warn when first called with this text."""
    warnings.warn(text, stacklevel=2)
