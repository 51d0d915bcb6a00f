"""The pictures and charts of a report."""

import json
from contextlib import suppress
from typing import Any

import numpy as np

from ddpm_jax.evaluation.chart import Line, chart
from ddpm_jax.evaluation.page import Picture
from ddpm_jax.evaluation.scores import Comparison
from ddpm_jax.metrics.neighbours import neighbours
from ddpm_jax.storage import paths, pictures

__all__ = ["distances_chart", "loss_chart", "neighbours_picture", "samples_picture"]

SAMPLES, NEIGHBOURS, WITH_NEIGHBOURS = 100, 5, 10


def samples_picture(images: Any) -> Picture:
    """The first 100 of the images, uint8 rows."""
    return Picture("Samples", "The first samples, not selected.", pictures.grid(images[:SAMPLES]))


def neighbours_picture(images: Any, seen: Comparison) -> Picture:
    """The first samples, each with the training images nearest to it.

    Args:
        images: the samples, uint8 rows.
        seen: the samples and the training images, through the extractor.
    """
    rows, training = min(WITH_NEIGHBOURS, seen.count), seen.training
    features = training.features.features
    found = neighbours(seen.samples.features[:rows], features, min(NEIGHBOURS, len(features)))
    cells = []
    for sample, indices in zip(images[:rows], found.indices, strict=True):
        cells += [sample, *(training.source[int(index)]["image"] for index in indices)]
    columns = found.indices.shape[1] + 1
    caption = f"In each row a sample, then the {columns - 1} images of {training.name} nearest to it in the features."
    return Picture("Nearest training images", caption, pictures.grid(np.stack(cells), columns=columns))


def distances_chart(seen: Comparison) -> str:
    """The share of samples, and of held-out images, with a training image within each distance."""
    samples, held_out = seen.nearest
    sets = {"samples": samples} | ({} if held_out is None else {"held-out images": held_out})
    lines = [Line(name, np.sort(x), np.arange(1, len(x) + 1) / len(x)) for name, x in sets.items()]
    return chart("Distance to the nearest training image", "distance in the features", "share within", lines)


def loss_chart(folder: paths.RunPath) -> str:
    """The training loss of the run in a folder, from its metrics.jsonl; "" if there is none."""
    path = folder / "metrics.jsonl"
    points = []
    with suppress(paths.io_errors(path)):
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut short
                entry = json.loads(line)
                points.append((float(entry["step"]), float(entry["loss"])))
    steps, loss = np.array(points).reshape(-1, 2).T
    return chart("Training loss", "step", "loss", [Line("loss", steps, loss)], log_y=True)
