"""`ddpm-jax prepare NAME SOURCE`: write a TFDS data set from arrays or image files, without a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddpm_jax.cli.sampler_options import one_of
from ddpm_jax.data.folder import Fit, Folder, Resample
from ddpm_jax.data.prepare import prepare
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import Npz, open_npz
from ddpm_jax.data.tfds import tfds_root
from ddpm_jax.errors import require
from ddpm_jax.storage.paths import local_path, require_folder

FOLDER_SPLITS = ("train", "test", "val", "validation")


@dataclass(frozen=True)
class PrepareOptions:
    """Write a TFDS data set (array_record, lossless) from an .npz or a folder of images.

    An .npz holds `images` and perhaps `labels`, or SPLIT_images and perhaps SPLIT_labels for each split; a
    folder holds images, or the folders train and test (or val, validation) with images.
    """

    name: Annotated[str, tyro.conf.arg(metavar="NAME"), tyro.conf.Positional]
    """The data set's name, for Tfds(NAME): lower-case words joined by underscores."""
    source: Annotated[Path, tyro.conf.arg(metavar="SOURCE"), tyro.conf.Positional]
    """The .npz, or the folder."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder of all data sets; $TFDS_DATA_DIR, or else ~/tensorflow_datasets, unless given."""
    size: int | None = None
    """For a folder: the height and width that images are resized and cropped to; kept as they are unless given."""
    fit: Fit = "cover"
    """For a folder: how images become square, as in Folder."""
    resample: Resample = "lanczos"
    """For a folder: the filter that resizes."""
    channels: Annotated[Literal[1, 3] | None, one_of(1, 3)] = None
    """For a folder: 1 converts all to grey, 3 all to RGB; they stay as they are unless given."""
    labels: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """For a folder: number the classes after its sub-folders, by name."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a data set of this name."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax prepare`."""
    options = tyro.cli(PrepareOptions, args=arguments, prog="ddpm-jax prepare", config=(tyro.conf.DisallowNone,))
    require_folder(local_path(tfds_root(options.data_dir and str(options.data_dir))), "choose another --data-dir")
    splits = splits_of(options)
    data_dir = None if options.data_dir is None else str(options.data_dir)
    folder = prepare(options.name, splits, data_dir, overwrite=options.overwrite)
    counts = ", ".join(f"{split} ({len(source)})" for split, source in splits.items())
    print(
        f"{folder}: {counts}\nread it with Tfds({options.name!r}" + (f", data_dir={data_dir!r})" if data_dir else ")")
    )


def splits_of(options: PrepareOptions) -> dict[str, Source]:
    """The sources found at `options.source`, one for each split."""
    path = local_path(options.source)
    if path.is_dir():
        return _folder_splits(options)
    if path.suffix != ".npz" or not path.exists():
        raise ValueError(f"source is {str(path)!r}; expected an .npz or a folder of images that exists")
    with open_npz(path, f"{path} cannot be read as an .npz: it") as stored:
        names = set(stored.files)
    for name in ("size", "fit", "resample", "channels", "labels"):
        value, default = getattr(options, name), PrepareOptions.__dataclass_fields__[name].default
        require(f"--{name}", value, value == default, "none with an .npz, whose arrays are taken as they are")
    found = {name.removesuffix("images").removesuffix("_") or "train" for name in names if name.endswith("images")}
    if not found:
        raise ValueError(f"{path} holds {', '.join(sorted(names))}; expected `images`, or SPLIT_images for each split")
    splits = {}
    for split in sorted(found, key=lambda split: (split != "train", split)):
        prefix = f"{split}_" if f"{split}_images" in names else ""
        labels = f"{prefix}labels"
        splits[split] = Npz(str(path), f"{prefix}images", labels if labels in names else None)
    return splits


def _folder_splits(options: PrepareOptions) -> dict[str, Source]:
    source = local_path(options.source)
    named = {name: source / name for name in FOLDER_SPLITS if (source / name).is_dir()}
    folders = named or {"train": source}
    how = (options.size, options.fit, options.resample, options.channels, options.labels)
    return {split: Folder(str(folder), *how) for split, folder in folders.items()}
