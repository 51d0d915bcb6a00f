"""The images that samples are compared with: their features and statistics, computed once and kept with their origin.

~/.cache/ddpm_jax/reference/DIGEST/
    provenance.json          the data, the split, how many, the extractor; DIGEST is its digest
    features/, logits/       in shards
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

from ddpm_jax.data.sources import Source, image_shape
from ddpm_jax.data.stream import gather
from ddpm_jax.evaluation import provenance
from ddpm_jax.evaluation.samples import Features, features_of
from ddpm_jax.features.extractor import Extractor
from ddpm_jax.metrics.frechet import Moments, load_moments, moments, save_moments
from ddpm_jax.paths import cache_folder, write_bytes
from ddpm_jax.precision import FULL, quoted_precision


def name_of(source: Source) -> str:
    """The data and the split, in a few words."""
    name, split = getattr(source, "name", None) or type(source).__name__, getattr(source, "split", None)
    return f"{name} {split}" if split else str(name)


@dataclass(frozen=True)
class Images:
    """The images of a source, by slice or indices."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        indices = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        return gather(self.source, indices)["image"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A source, seen through an extractor."""

    source: Source
    extractor: Extractor
    mesh: Mesh | None = None

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the source is: the data, the split, how many, a digest."""
        image_shape(self.source)
        return provenance.of_source(self.source)

    @property
    def name(self) -> str:
        """The data and the split, in a few words."""
        return name_of(self.source)

    @cached_property
    def features(self) -> Features:
        """Its features and logits, as rows on disk."""
        return features_of(Images(self.source), self.extractor, self._folder, f"features of {self.name}", self.mesh)

    @cached_property
    def moments(self) -> Moments:
        """The mean and covariance of its features."""
        path = self._folder / "statistics.npz"
        with suppress(FileNotFoundError, ValueError):  # none yet, or damaged: it is made again
            stored = load_moments(path)
            if stored.provenance == json.loads(json.dumps(self._provenance)):
                return stored.moments
        found = moments(self.features.features)
        save_moments(path, found, self._provenance)
        return found

    @property
    def _provenance(self) -> dict[str, Any]:
        extractor, precision = self.extractor, quoted_precision()
        return {
            **self.about,
            "features": extractor.name,
            "weights": extractor.digest,
            "images": extractor.preprocessing,
            **({} if precision == FULL else {"precision": precision}),
        }

    @cached_property
    def _folder(self) -> Path:
        folder = cache_folder("reference") / provenance.digest(self._provenance)
        path = folder / "provenance.json"
        if not path.exists():
            write_bytes(path, (json.dumps(self._provenance, indent=2) + "\n").encode())
        return folder
