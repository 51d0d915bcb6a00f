"""Write any sources as a data set of TensorFlow Datasets (TFDS), without TensorFlow and without loss.

    prepare("mnist", {"train": Npz("mnist.npz", "train_images", "train_labels"), "test": ...})
    Tfds("mnist", split="train", label_key="label")          the same examples in the same order

Images are stored as PNG in array_record files.  TFDS reads them too (`tfds.data_source`).
"""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data import Source, sources, stream
from ddpm_jax.data.tfds import tfds_root
from ddpm_jax.errors import require
from ddpm_jax.storage.pictures import MODES, png

__all__ = ["prepare"]

VERSION = "1.0.0"
SHARD_BYTES = 2**28  # uncompressed bytes of the images in one file
CHUNK = 256


def prepare(
    name: str,
    splits: Mapping[str, Source],
    data_dir: str | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write sources as a data set.

    The folder of the data set appears, or is replaced, once all is written.

    Args:
        name: the name of the data set, such as "my_images".
        splits: a source for each split.
        data_dir: the folder of all data sets; None: $TFDS_DATA_DIR if set, otherwise ~/tensorflow_datasets.
        overwrite: whether an existing data set of this name is replaced.
        progress: whether to show a progress bar.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: the name is taken or unsuitable, or the images differ in shape or cannot be stored as PNG.
    """
    root = tfds_root(data_dir)
    _check_names(name, splits, root)
    folder = Path(root, name, VERSION)
    others = sorted(entry.name for entry in folder.parent.glob("[!.]*") if entry != folder)
    if others:
        raise ValueError(f"name is {name!r}; {folder.parent} holds {', '.join(others)} already: choose another name")
    if folder.exists() and not overwrite:
        remedy = "choose another name, or pass --overwrite (overwrite=True)"
        raise ValueError(f"name is {name!r}; {folder} exists already: {remedy}")
    shape, has_labels = _common(splits)
    os.makedirs(root, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as unfinished:
        written = Path(unfinished, VERSION)
        written.mkdir()
        _write(name, splits, shape, has_labels, written, progress)
        folder.parent.mkdir(exist_ok=True)
        replaced = Path(root, f".{name}-replaced-{os.getpid()}")
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(written, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    return folder


def _check_names(name: str, splits: Mapping[str, Source], root: str) -> None:
    if "://" in root:
        raise ValueError(f"data_dir is {root!r}; prepare the data in a local folder, then copy them there")
    suitable = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) is not None
    require("name", name, suitable, "lower-case words joined by underscores, such as 'my_images'")
    if not splits:
        raise ValueError("splits is empty; expected at least one, such as {'train': source}")
    for split in splits:
        if not re.fullmatch(r"[a-z]\w*", split) or split == "all":
            raise ValueError(f"the split {split!r} has an unsuitable name; expected a word such as 'train', not 'all'")


def _common(splits: Mapping[str, Source]) -> tuple[tuple[int, int, int], bool]:
    """The shape of the images of all splits, and whether they have labels."""
    found = {split: (sources.image_shape(source), "label" in source[0]) for split, source in splits.items()}
    if len(set(found.values())) > 1:
        described = [f"{split} {shape} {'with' if has else 'without'} labels" for split, (shape, has) in found.items()]
        raise ValueError(f"the splits differ: {'; '.join(described)}; expected one shape, and labels in all or none")
    shape, has_labels = next(iter(found.values()))
    if shape[2] not in MODES:
        raise ValueError(f"the images have shape {shape}; a PNG has 1, 3 or 4 channels, the last axis")
    return shape, has_labels


def _write(
    name: str, splits: Mapping[str, Source], shape: tuple[int, int, int], labels: bool, folder: Path, progress: bool
) -> None:
    import tensorflow_datasets as tfds
    from rich.progress import Progress

    features: dict[str, Any] = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if labels:
        features["label"] = tfds.features.Scalar(np.int32)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=os.fspath(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    per_shard = max(1, SHARD_BYTES // int(np.prod(shape)))
    writer = tfds.core.SequentialWriter(info, per_shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    with Progress(disable=not progress) as bar:
        for split, source in splits.items():
            task = bar.add_task(f"{name}: {split}", total=len(source))
            for examples in _encoded(source, shape):
                writer.add_examples({split: examples})
                bar.advance(task, len(examples))
    writer.close_all()


def _encoded(source: Source, shape: tuple[int, int, int]) -> Iterator[list[dict[str, Any]]]:
    """The examples in order, their images as PNG files, in lists of up to 256."""
    start = 0
    for batch in stream.sequential(source, CHUNK):
        if batch["image"].shape[1:] != shape:
            found = f"the images from number {start} on have shape {batch['image'].shape[1:]}, the first has {shape}"
            raise ValueError(f"{found}; expected one shape: resize them, as Folder(size=...) does")
        labels = [{"label": label} for label in batch["label"]] if "label" in batch else [{}] * len(batch["image"])
        yield [{"image": io.BytesIO(png(image)), **label} for image, label in zip(batch["image"], labels, strict=True)]
        start += len(batch["image"])
