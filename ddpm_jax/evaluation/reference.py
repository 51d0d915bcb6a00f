"""The images that samples are compared with: their features and statistics, computed once and cached.

~/.cache/ddpm_jax/reference/DIGEST/
    provenance.json          the data, the split, the number of images, the extractor; DIGEST is its digest
    features/, logits/       in shards; also labels/, once they have been read
    statistics.npz           mean, cov, count and the provenance
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, Int32, UInt8

from ddpm_jax.data import Given, Source, Tfds, sources, stream
from ddpm_jax.data.source import HasArrays, split_of
from ddpm_jax.devices.mesh import broadcast, on_first_process
from ddpm_jax.devices.precision import FULL, quoted_precision
from ddpm_jax.errors import require
from ddpm_jax.evaluation import provenance
from ddpm_jax.evaluation.labels import ClassCounts
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.evaluation.samples import Features, features_of
from ddpm_jax.evaluation.shards import Shards
from ddpm_jax.features.extractor import Extractor
from ddpm_jax.metrics.frechet import Moments, load_moments, moments, save_moments
from ddpm_jax.storage.paths import cache_folder, write_bytes

__all__ = ["Images", "Reference", "class_counts", "name_of"]

LABELS_AT_ONCE = 1024


def name_of(source: Source) -> str:
    """The name of the data and of the split."""
    name = source.name if isinstance(source, Tfds | Given) else type(source).__name__
    split = split_of(source)
    return f"{name} {split}" if split else name


@dataclass(frozen=True)
class Images:
    """The images of a source, as rows."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width channels"]:
        indices = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        return stream.gather(self.source, indices)["image"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A source, seen through an extractor."""

    source: Source
    extractor: Extractor
    mesh: Mesh | None = None

    @cached_property
    def about(self) -> dict[str, Any]:
        """The data, the split, the number of images and a digest of their content."""
        sources.image_shape(self.source)
        return provenance.of_source(self.source)

    @property
    def name(self) -> str:
        """The name of the data and of the split."""
        return name_of(self.source)

    @cached_property
    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """The label of each image; None if the images have none.  Labels of data on disk are read once and cached."""
        if "label" not in self.source[0]:
            return None
        count = len(self.source)
        if isinstance(self.source, HasArrays):
            return np.asarray(self.source.arrays["label"], np.int32)
        shards = Shards(self._folder / "labels")
        with ProgressBar(f"labels of {self.name}", count, len(shards)) as progress:
            for first in progress.steps(LABELS_AT_ONCE):
                rows = np.arange(first, min(first + LABELS_AT_ONCE, count))
                shards.append(np.asarray(stream.gather(self.source, rows)["label"], np.int32))
        return shards[:]

    @cached_property
    def features(self) -> Features:
        """The features and logits of its images, as rows on disk."""
        return features_of(Images(self.source), self.extractor, self._folder, f"features of {self.name}", self.mesh)

    @cached_property
    def moments(self) -> Moments:
        """The mean and covariance of its features."""
        path = self._folder / "statistics.npz"
        with suppress(FileNotFoundError, ValueError):  # a file that is missing or damaged is written again
            stored = load_moments(path)
            if stored.provenance == json.loads(json.dumps(self._provenance)):
                return stored.moments
        found = moments(self.features.features)
        save_moments(path, found, self._provenance)
        return found

    @property
    def _provenance(self) -> dict[str, Any]:
        extractor, precision = self.extractor, quoted_precision()
        features = {"features": extractor.name, "weights": extractor.digest, "images": extractor.preprocessing}
        return self.about | features | ({} if precision == FULL else {"precision": precision})

    @cached_property
    def _folder(self) -> Path:
        folder = cache_folder("reference") / provenance.digest(self._provenance)
        path = folder / "provenance.json"
        if not path.exists():
            write_bytes(path, (json.dumps(self._provenance, indent=2) + "\n").encode())
        return folder


def class_counts(num_classes: int, reference: Reference, training: Reference | None) -> ClassCounts:
    """The class counts from which labels are drawn; every process gets those that the first one found.

    Args:
        num_classes: the number of classes of the network.
        reference: the images that samples are compared with.
        training: the images that the run was trained on; None if they are not known.

    Raises:
        ValueError: a label is no class of the network.
        RunError: on the other processes, if the first one failed.
    """
    found = on_first_process(lambda: _counted(num_classes, reference, training), "count the labels")
    counts = found.counts if found else (0,) * num_classes
    return ClassCounts(tuple(broadcast(count) for count in counts), found.of if found else "")


def _counted(num_classes: int, reference: Reference, training: Reference | None) -> ClassCounts:
    for data, why in ((reference, ""), (training, f", as {reference.name} has no labels")):
        if data is not None and (labels := data.labels) is not None:
            check_labels(labels, num_classes, data.name)
            counts = np.bincount(labels, minlength=num_classes)
            return ClassCounts(tuple(counts.tolist()), f"{data.name}{why}")
    return ClassCounts((1,) * num_classes, f"equal shares, as {reference.name} has no labels")


def check_labels(labels: Int[np.ndarray, " n"], num_classes: int, name: str) -> None:
    """Raise ValueError if a label is no class of the network.

    Args:
        labels: the labels.
        num_classes: the number of classes of the network.
        name: the name of the images, for the message.
    """
    where = int(np.argmax((labels < 0) | (labels >= num_classes)))  # the first wrong one; 0 if there is none
    label, expected = int(labels[where]), f"0 to {num_classes - 1}, a class of the network; or images without labels"
    require(f"the label of image {where} of {name}", label, 0 <= label < num_classes, expected)
