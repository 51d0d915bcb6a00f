"""`ddpm-jax prepare NAME SOURCE`: write a TFDS data set from arrays or image files, without a network."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddpm_jax.cli.options import by_default, one_of, parse
from ddpm_jax.data import Folder, Npz, Source
from ddpm_jax.data.folder import Fit, Resample
from ddpm_jax.data.prepare import prepare
from ddpm_jax.data.sources import open_npz
from ddpm_jax.data.tfds import tfds_root
from ddpm_jax.errors import require
from ddpm_jax.storage.paths import local_path, require_folder

__all__ = ["DataFolder", "FolderOptions", "PrepareOptions", "main", "splits_of"]

FOLDER_SPLITS = ("train", "test", "val", "validation")
DataFolder = Annotated[str | None, by_default("$TFDS_DATA_DIR, or ~/tensorflow_datasets", "DIR")]


@dataclass(frozen=True)
class FolderOptions:
    """Options for reading a folder of images."""

    size: Annotated[int | None, by_default("the images keep their size")] = None
    """For a folder: the height and width that images are resized to."""
    fit: Fit = "cover"
    """For a folder: cover resizes the largest centred square. stretch resizes height and width separately.
    crop cuts out the centre without resizing."""
    resample: Resample = "lanczos"
    """For a folder: the filter for resizing."""
    channels: Annotated[Literal[1, 3] | None, one_of(1, 3), by_default("the images keep their channels")] = None
    """For a folder: 1 converts all images to grey, 3 to RGB."""
    labels: bool = False
    """For a folder: its sub-folders are the classes, numbered by name."""


@dataclass(frozen=True)
class PrepareOptions:
    """Write a TFDS data set (array_record, lossless) from an .npz file or a folder of images.

    The .npz file holds `images`, and `labels` if there are any, or SPLIT_images and SPLIT_labels for each split. The
    folder holds images, or the folders train and test (or val, validation) with images.
    """

    name: Annotated[str, tyro.conf.arg(metavar="NAME"), tyro.conf.Positional]
    """The name of the data set, for Tfds(NAME): lower-case words joined by underscores."""
    source: Annotated[Path, tyro.conf.arg(metavar="SOURCE"), tyro.conf.Positional]
    """The .npz file or the folder."""
    data_dir: DataFolder = None
    """The folder of all TFDS data sets."""
    folder: Annotated[FolderOptions, tyro.conf.arg(name="")] = FolderOptions()
    overwrite: bool = False
    """Replace an existing data set of this name."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax prepare`."""
    options = parse(PrepareOptions, arguments, "prepare")
    require_folder(local_path(tfds_root(options.data_dir)), "choose another --data-dir")
    splits = splits_of(local_path(options.source), options.folder)
    folder = prepare(options.name, splits, options.data_dir, overwrite=options.overwrite)
    counts = ", ".join(f"{split} ({len(source)})" for split, source in splits.items())
    where = f", data_dir={options.data_dir!r}" if options.data_dir else ""
    print(f"{folder}: {counts}\nread it with Tfds({options.name!r}{where})")


def splits_of(path: Path, options: FolderOptions) -> dict[str, Source]:
    """The sources of an .npz file or of a folder of images, one for each split.

    Args:
        path: the .npz file or the folder.
        options: the options for a folder.

    Raises:
        ValueError: there is nothing at the path that can be read, or an option does not apply to it.
    """
    chosen = dataclasses.asdict(options)
    if path.is_dir():
        named = {name: path / name for name in FOLDER_SPLITS if (path / name).is_dir()}
        return {split: Folder(str(folder), **chosen) for split, folder in (named or {"train": path}).items()}
    if path.suffix != ".npz" or not path.exists():
        raise ValueError(f"source is {str(path)!r}; expected an .npz or a folder of images that exists")
    with open_npz(path, f"{path} cannot be read as an .npz: it") as stored:
        names = set(stored.files)
    for name, default in dataclasses.asdict(FolderOptions()).items():
        require(f"--{name}", chosen[name], chosen[name] == default, "none with an .npz, whose arrays are not changed")
    found = {name.removesuffix("images").removesuffix("_") or "train" for name in names if name.endswith("images")}
    if not found:
        raise ValueError(f"{path} holds {', '.join(sorted(names))}; expected `images`, or SPLIT_images for each split")
    splits = {}
    for split in sorted(found, key=lambda split: (split != "train", split)):
        images = f"{split}_images" if f"{split}_images" in names else "images"
        labels = images.removesuffix("images") + "labels"
        splits[split] = Npz(str(path), images, labels if labels in names else None)
    return splits
