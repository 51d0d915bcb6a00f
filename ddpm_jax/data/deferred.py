"""Data that are named later: what a network that was imported goes on learning from is not known with it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ddpm_jax.data.folder import Folder
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import Npz, StandIn


@dataclass(frozen=True)
class Deferred(StandIn):
    """The images of an .npz file or of a folder, once `path` says which; until then only their shape is known."""

    image_shape: tuple[int, int, int]
    """(height, width, channels) of the images that the network was trained on."""
    path: str | None = None
    """An .npz file with `images` uint8 [N, height, width, channels], or a folder of image files, which are resized to
    a square image_shape; None: not known yet."""
    labels: bool = False
    """Whether there are labels: `labels` of the .npz file, or the sub-folders of the folder."""

    @cached_property
    def source(self) -> Source:
        """The images; raises FileNotFoundError where `path` does not say which, ValueError where they do not fit."""
        height, width, channels = self.image_shape
        if self.path is None:
            raise FileNotFoundError(
                f"data.path is None: the network was imported, and what it is to learn from is not known; give "
                "--data.path FILE.npz or --data.path FOLDER, or an experiment file with other data, images of "
                f"{height}x{width}x{channels}"
            )
        if Path(self.path).suffix == ".npz":
            source: Any = Npz(self.path, labels="labels" if self.labels else None)
        else:
            shape: dict[str, Any] = {"size": height if height == width else None}
            shape["channels"] = channels if channels in (1, 3) else None
            source = Folder(self.path, **shape, labels=self.labels)
        found = source[0]["image"].shape
        if found != self.image_shape:
            raise ValueError(
                f"data.path is {self.path!r}, images of shape {found}; the network takes {self.image_shape}"
            )
        return source

    def has_labels(self, num_classes: int | None) -> bool:
        """Whether there are labels of this many classes at `path`, whatever `labels` says; False for None."""
        if self.path is None or num_classes is None:
            return False
        try:
            if Path(self.path).suffix == ".npz":
                with np.load(Path(self.path).expanduser()) as stored:
                    return "labels" in stored.files
            return len(Folder(self.path, labels=True).class_names) == num_classes
        except (ValueError, OSError, EOFError, BadZipFile):  # images in no sub-folder; a file whose reading says more
            return False

    @property
    def declared_shape(self) -> tuple[int, int, int]:
        """The images' shape, before any is read."""
        return self.image_shape
