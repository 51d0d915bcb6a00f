"""The samples of a run, stored in shards as they are drawn: image i is always the same image.

RUN/evaluations/samples-DIGEST/
    conditions.json          all that image i depends on, except i; DIGEST is its digest
    images/                  uint8 [n, height, width, channels], in shards
    NAME-DIGEST/             features of these images by an extractor, and its logits if it has any, in shards
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ddpm_jax.data.images import to_pixels
from ddpm_jax.devices.mesh import broadcast
from ddpm_jax.devices.precision import quoted, quoted_precision
from ddpm_jax.errors import RunError, require
from ddpm_jax.evaluation import provenance
from ddpm_jax.evaluation.labels import BALANCED, ClassCounts
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.evaluation.shards import Shards
from ddpm_jax.features.extractor import Extracted, Extractor, extract
from ddpm_jax.run import Run
from ddpm_jax.storage import classes, specs
from ddpm_jax.storage.paths import RunPath, write_bytes

__all__ = ["PER_DEVICE", "Drawing", "Features", "check_finite", "draw", "features_of"]

# Images in a shard, for each device; they are drawn together.
PER_DEVICE = 256


@dataclass(frozen=True, eq=False)
class Drawing:
    """A sequence of images: those that a run draws with the sampler and clipping of its experiment."""

    run: Run
    seed: int = 0
    guidance: float | None = None
    counts: ClassCounts | None = None
    """The class counts from which labels are drawn, for a class-conditional network; None for all classes in turn."""

    def __post_init__(self) -> None:
        require("seed", self.seed, 0 <= self.seed < 2**32, "0 or more, less than 2^32")

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """All that image i depends on, except i."""
        run, experiment = self.run, self.run.experiment
        parts = ("net", "schedule", "target", "variance", "sampler", "clip")
        written = classes.file_classes(experiment)  # the code of these classes counts, not their names alone
        return {
            "experiment": experiment.name,
            "step": run.step,
            "ema": run.ema,
            "weights": provenance.digest_of_arrays(run.params),
            **{part: specs.described(getattr(experiment, part)) for part in parts},
            "classes": {name: provenance.digest(classes.code_of(cls)) for name, cls in sorted(written.items())},
            "image_shape": list(run.image_shape),
            "labels": None if self.num_classes is None else self.counts.conditions if self.counts else BALANCED,
            "guidance": self.guidance,
            "precision": quoted_precision(),
            "seed": self.seed,
            "rounding": "clipped to [-1, 1], then round(127.5 (x + 1)) as uint8",
            "versions": {name: value for name, value in provenance.of_code().items() if name != "commit"},
        }

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the network; None for an unconditional one."""
        return self.run.experiment.net.num_classes

    def labels(self, first_index: int, n: int) -> Int[np.ndarray, " n"] | None:
        """The labels of some images; None for an unconditional network.

        Args:
            first_index: the number of the first image.
            n: the number of images.
        """
        if self.num_classes is None:
            return None
        if self.counts is None:
            return np.arange(first_index, first_index + n) % self.num_classes
        return self.counts.draw(jax.random.key(self.seed), first_index, n)


@quoted
def draw(drawing: Drawing, folder: RunPath, n: int, per_device: int = PER_DEVICE) -> Shards:
    """Draw images 0..n-1, and those that complete the last shard, over all devices.

    Images that are on disk already are kept.  If there are several processes, the first one writes.

    Args:
        drawing: the sequence of images.
        folder: the folder for conditions.json and images/.
        n: the number of images.
        per_device: images drawn at a time on each device.

    Returns:
        The images, on disk.

    Raises:
        ValueError: n is less than 1.
        RunError: an image is not finite.
    """
    require("num_samples", n, n >= 1, "at least 1")
    first_process = jax.process_index() == 0
    about = folder / "conditions.json"
    if first_process and not about.exists():
        conditions = {**drawing.conditions, "commit": provenance.commit()}
        write_bytes(about, (json.dumps(conditions, indent=2) + "\n").encode())
    shards = Shards(folder / "images")
    devices, guidance = drawing.run.mesh.size, drawing.guidance
    size = min(per_device, math.ceil(n / devices)) * devices
    done, key = broadcast(len(shards)), jax.random.key(drawing.seed)
    with ProgressBar("drawing", n, min(done, n), quiet=not first_process) as progress:
        for first in progress.steps(size):
            which = {"labels": drawing.labels(first, size), "first_index": first}
            x = drawing.run.sample(key, size, **which, guidance=guidance, chunk=per_device)
            check_finite("sample", x, first)
            if first_process:
                shards.append(np.asarray(to_pixels(x)))
    return shards


def check_finite(what: str, values: Float[np.ndarray, "n ..."], first: int) -> None:
    """Raise RunError if any value is not finite.

    Args:
        what: the name of one row, for the message.
        values: the values, one row for each image.
        first: the number of the first image.
    """
    wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if wrong.size:
        why = "the network of this checkpoint, or the sampler, diverges"
        raise RunError(f"{what} {first + wrong[0]} is not finite; {why}")


@dataclass(frozen=True)
class Features:
    """The features of images, and their logits if the extractor has any: rows, on disk or in memory."""

    features: Any
    logits: Any = None

    def chosen(self, choose: Callable[[Any], Any]) -> "Features":
        """Those of some images; choose: takes all rows of an array, and returns some of them."""
        return Features(choose(self.features), None if self.logits is None else choose(self.logits))


def features_of(images: Any, extractor: Extractor, folder: RunPath, what: str, mesh: Mesh | None = None) -> Features:
    """The features of images, computed in shards; those that are on disk already are kept.

    Args:
        images: the images, uint8 rows: anything with a length whose slices are arrays.
        extractor: the features.
        folder: the folder for features/ and logits/.
        what: the name of the work, for the progress bar.
        mesh: the devices that share the work, all of this process; None for one of them.
    """
    features, logits = Shards(folder / "features"), Shards(folder / "logits")
    with_logits = logits.folder.exists()
    done = min(len(features), len(logits)) if with_logits else len(features)
    with ProgressBar(what, len(images), done) as progress:
        for first in progress.steps(PER_DEVICE):
            block = extract(extractor, images[first : first + PER_DEVICE], mesh=mesh)
            _append(features, logits, block, first)
            with_logits = block.logits is not None
    return Features(features, logits if with_logits else None)


def _append(features: Shards, logits: Shards, block: Extracted, done: int) -> None:
    """Write the rows of a block that are missing: a kill between the two files leaves them of different length."""
    for shards, rows in ((logits, block.logits), (features, block.features)):
        if rows is not None and len(shards) < done + len(rows):
            shards.append(np.asarray(rows[len(shards) - done :]))
