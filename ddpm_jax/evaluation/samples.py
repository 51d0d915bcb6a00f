"""The samples of a run, drawn in shards that outlive the process: image i is always the same image.

RUN/evaluations/samples-DIGEST/
    conditions.json          all that image i depends on, but i; DIGEST is its digest
    images/                  uint8 [n, height, width, channels], in shards
    NAME-DIGEST/             features of these images by an extractor, and logits where it has some, in shards
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from ddpm_jax.data.images import to_pixels
from ddpm_jax.devices.mesh import broadcast
from ddpm_jax.devices.precision import quoted, quoted_precision
from ddpm_jax.errors import RunError, require
from ddpm_jax.evaluation import provenance
from ddpm_jax.evaluation.labels import BALANCED, ClassCounts
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.evaluation.shards import Shards, Some
from ddpm_jax.features.extractor import Extracted, Extractor, extract
from ddpm_jax.run import Run
from ddpm_jax.storage import specs
from ddpm_jax.storage.classes import code_of, file_classes
from ddpm_jax.storage.paths import RunPath, write_bytes

# Images in a shard, for each device; they are drawn at once.
PER_DEVICE = 256


@dataclass(frozen=True, eq=False)
class Drawing:
    """Which images: those of a run with the sampler and clipping of its experiment, from a seed."""

    run: Run
    seed: int = 0
    guidance: float | None = None
    counts: ClassCounts | None = None
    """What each label is drawn from, for a class-conditional network; None: all classes in turn."""

    def __post_init__(self) -> None:
        require("seed", self.seed, 0 <= self.seed < 2**32, "0 or more, less than 2^32")

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """All that image i depends on, but i."""
        run, experiment = self.run, self.run.experiment
        parts = ("net", "schedule", "target", "variance", "sampler", "clip")
        written = file_classes(experiment)  # classes of the experiment's own file are code, not a name
        return {
            "experiment": experiment.name,
            "step": run.step,
            "ema": run.ema,
            "weights": provenance.digest_of_arrays(run.params),
            **{part: specs.described(getattr(experiment, part)) for part in parts},
            "classes": {name: provenance.digest(code_of(cls)) for name, cls in sorted(written.items())},
            "image_shape": list(run.image_shape),
            "labels": self._labels_conditions,
            "guidance": self.guidance,
            "precision": quoted_precision(),
            "seed": self.seed,
            "rounding": "clipped to [-1, 1], then round(127.5 (x + 1)) as uint8",
            "versions": {name: value for name, value in provenance.of_code().items() if name != "commit"},
        }

    @property
    def _labels_conditions(self) -> Any:
        if self.num_classes is None:
            return None
        return BALANCED if self.counts is None else self.counts.conditions

    @property
    def num_classes(self) -> int | None:
        """How many classes the network knows; None for an unconditional one."""
        return self.run.experiment.net.num_classes

    def labels(self, first_index: int, n: int) -> Int[np.ndarray, " n"] | None:
        """The labels of images first_index, ..., first_index + n - 1; None for an unconditional network."""
        if self.num_classes is None:
            return None
        if self.counts is None:
            return np.arange(first_index, first_index + n) % self.num_classes
        return self.counts.draw(jax.random.key(self.seed), first_index, n)


@quoted
def draw(drawing: Drawing, folder: RunPath, n: int, per_device: int = PER_DEVICE) -> Shards:
    """Images 0..n-1 of a drawing, and perhaps a few more, in FOLDER/images; those that are there are kept.

    Over all devices; of many processes, the first one writes.
    """
    require("num_samples", n, n >= 1, "at least 1")
    first_process = jax.process_index() == 0
    about = folder / "conditions.json"
    if first_process and not about.exists():
        told = {**drawing.conditions, "commit": provenance.commit()}
        write_bytes(about, (json.dumps(told, indent=2) + "\n").encode())
    shards = Shards(folder / "images")
    devices = drawing.run.mesh.size
    size = min(per_device, math.ceil(n / devices)) * devices
    done, key = broadcast(len(shards)), jax.random.key(drawing.seed)
    with ProgressBar("drawing", n, min(done, n), quiet=not first_process) as waiting:
        while done < n:
            x = drawing.run.sample(
                key,
                size,
                labels=drawing.labels(done, size),
                guidance=drawing.guidance,
                first_index=done,
                chunk=per_device,
            )
            check_finite("sample", x, done)
            if first_process:
                shards.append(np.asarray(to_pixels(x)))
            done += size
            waiting.reached(min(done, n))
    return shards


def check_finite(what: str, values: np.ndarray, first: int) -> None:
    """Raise RunError where some of the values [n, ...] are not finite; `first` is the number of the first."""
    wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if wrong.size:
        raise RunError(
            f"{what} {first + wrong[0]} is not finite; the network of this checkpoint, or the sampler, diverges"
        )


@dataclass(frozen=True)
class Features:
    """The features of images, and their logits where the extractor has some: rows on disk."""

    features: Any
    logits: Any = None

    def first(self, n: int) -> "Features":
        """Those of the first n images."""
        return Features(Some.first(self.features, n), None if self.logits is None else Some.first(self.logits, n))


def features_of(images: Any, extractor: Extractor, folder: RunPath, what: str, mesh: Mesh | None = None) -> Features:
    """The features of images in FOLDER/features and FOLDER/logits, in shards; those that are there are kept.

    images: uint8 rows, anything with a length whose slices are arrays.  mesh: the devices that share the work, all of
    this process; one of them unless given.
    """
    features, logits = Shards(folder / "features"), Shards(folder / "logits")
    with_logits = logits.folder.exists()
    done = min(len(features), len(logits)) if with_logits else len(features)
    with ProgressBar(what, len(images), done) as waiting:
        while done < len(images):
            block = extract(extractor, images[done : done + PER_DEVICE], mesh=mesh)
            _append(features, logits, block, done)
            with_logits = block.logits is not None
            done += len(block.features)
            waiting.reached(done)
    return Features(features, logits if with_logits else None)


def _append(features: Shards, logits: Shards, block: Extracted, done: int) -> None:
    """Write a block; the process may have died between the one and the other, so of each only what is missing."""
    for shards, rows in ((logits, block.logits), (features, block.features)):
        if rows is not None and len(shards) < done + len(rows):
            shards.append(np.asarray(rows[len(shards) - done :]))
