"""Data that are named later: an imported network comes without its data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ddpm_jax.data.folder import Folder
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import Npz, StandIn

__all__ = ["Deferred"]


@dataclass(frozen=True)
class Deferred(StandIn):
    """The images of an .npz file or of a folder.  As long as `path` is None only their shape is known."""

    image_shape: tuple[int, int, int]
    """(height, width, channels) of the images that the network was trained on."""
    path: str | None = None
    """An .npz file with `images` uint8 [N, height, width, channels], or a folder of image files, which are resized if
    image_shape is square; None: not known yet."""
    labels: bool = False
    """Whether there are labels: `labels` of the .npz file, or the sub-folders of the folder."""

    @cached_property
    def source(self) -> Source:
        """The images; FileNotFoundError if `path` is None, ValueError if their shape is not `image_shape`."""
        height, width, channels = self.image_shape
        if self.path is None:
            raise FileNotFoundError(
                "data.path is None: the network was imported without its data; give --data.path FILE.npz or "
                f"--data.path FOLDER, or an experiment file with other data, images of {height}x{width}x{channels}"
            )
        if Path(self.path).suffix == ".npz":
            source: Source = Npz(self.path, labels="labels" if self.labels else None)
        else:
            size, kept = height if height == width else None, channels if channels in (1, 3) else None
            source = Folder(self.path, size, channels=kept, labels=self.labels)
        found = source[0]["image"].shape
        if found == self.image_shape:
            return source
        raise ValueError(f"data.path is {self.path!r}, images of shape {found}; the network takes {self.image_shape}")

    def has_labels(self, num_classes: int | None) -> bool:
        """Whether `path` has labels of so many classes, whether or not `labels` is set; False if `path` is None."""
        if self.path is None or num_classes is None:
            return False
        try:
            if Path(self.path).suffix == ".npz":
                with np.load(Path(self.path).expanduser()) as stored:
                    return "labels" in stored.files
            return len(Folder(self.path, labels=True).class_names) == num_classes
        except (ValueError, OSError, EOFError, BadZipFile):  # `source` raises an error that says more
            return False

    @property
    def declared_shape(self) -> tuple[int, int, int]:
        """The shape of the images, known before any is read."""
        return self.image_shape
