"""A data set of TensorFlow Datasets (TFDS) as a source, read without TensorFlow."""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from ddpm_jax.data.source import Example
from ddpm_jax.data.sources import pixels_of
from ddpm_jax.errors import check_fields
from ddpm_jax.storage.paths import local_copy

__all__ = ["Tfds", "tfds_root"]

DESCRIPTIONS = ("dataset_info.json", "features.json")


def tfds_root(data_dir: str | None) -> str:
    """The folder of all TFDS data sets: data_dir, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


@dataclass(frozen=True)
class Tfds:
    """A data set prepared with TFDS in the array_record format, read without TensorFlow.

    `ddpm-jax prepare` makes one from any other source.  With TensorFlow installed, so does
    `tfds build NAME --file_format=array_record`.  This class never downloads anything.
    """

    name: str
    """NAME or NAME/CONFIG, either with or without :VERSION; without it, the newest prepared version."""
    split: str = "train"
    """A split, a part of one ('train[:10%]', 'train[1000:]') or a sum of them ('train+test')."""
    data_dir: str | None = None
    """The folder of all data sets; None: $TFDS_DATA_DIR if set, otherwise ~/tensorflow_datasets."""
    image_key: str = "image"
    """The feature that is the image."""
    label_key: str | None = None
    """The feature that is the label, an integer; None: there are no labels."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not re.fullmatch(r"[a-zA-Z]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", self.name):
            raise ValueError(f"name is {self.name!r}; expected NAME, NAME/CONFIG, or either with :MAJOR.MINOR.PATCH")

    def __len__(self) -> int:
        return len(self._records)

    @property
    def declared_shape(self) -> tuple[int, ...] | None:
        """The shape of the images if TFDS knows it before the data are prepared; None if it does not."""
        import tensorflow_datasets as tfds

        try:
            builder: Any = tfds.builder(self.name, data_dir=tfds_root(self.data_dir))
            shape = builder.info.features[self.image_key].shape
        except Exception:  # TFDS raises many kinds of errors for an unknown data set
            return None
        return None if None in shape else shape

    @property
    def splits(self) -> tuple[str, ...]:
        """The prepared splits."""
        return tuple(sorted(self._builder.info.splits))

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features of the data set."""
        return tuple(sorted(self._builder.info.features))

    @property
    def content_files(self) -> dict[str, Path]:
        """The files of the examples and their description, by their names in the folder of the data set.

        For a data set in an object store, only the description.
        """
        len(self)  # raises ValueError if the split does not exist
        chosen = self.splits if "all" in self._split_names else self._split_names
        files = {file for name in chosen for file in self._builder.info.splits[name].filenames}
        remote = "://" in os.fspath(self._folder)
        found = {name: local_copy(self._folder / name) for name in DESCRIPTIONS}
        return found if remote else found | {name: Path(self._folder) / name for name in sorted(files)}

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> list[Example]:
        numbers = [int(index) for index in indices]
        records = self._records.__getitems__(numbers)  # one read of many records is faster than many reads
        return [self._example(number, record) for number, record in zip(numbers, records, strict=True)]

    def _example(self, index: int, record: bytes) -> Example:
        import tensorflow_datasets as tfds

        features, key = self._features, self.image_key
        is_encoded = isinstance(features[key], tfds.features.Image)
        decoders: Any = {key: tfds.decode.SkipDecoding()} if is_encoded else None
        try:
            example = features.deserialize_example_np(record, decoders=decoders)
            image = self._decode(example[key]) if is_encoded else pixels_of(example[key])
        except Exception as error:
            raise ValueError(f"example {index} of {self._folder} cannot be read ({error}); prepare it again") from None
        return {"image": image} | ({"label": np.int32(example[self.label_key])} if self.label_key else {})

    @property
    def _split_names(self) -> list[str]:
        return [part.partition("[")[0].strip() for part in self.split.split("+")]

    @cached_property
    def _folder(self) -> Any:
        """The folder of the version: root/NAME[/CONFIG]/VERSION."""
        from etils import epath

        root = epath.Path(tfds_root(self.data_dir))
        name, _, version = self.name.partition(":")
        found = _versions(root / name)
        if not found and "/" not in name and (root / name).is_dir():
            configs = {f"{name}/{folder.name}": _versions(folder) for folder in (root / name).iterdir()}
            configs = {config: versions for config, versions in configs.items() if versions}
            if len(configs) > 1:
                listed = ", ".join(sorted(configs))
                raise ValueError(f"name is {self.name!r}; expected one of its configurations: {listed}")
            found = next(iter(configs.values()), {})
        if not found:
            raise FileNotFoundError(
                f"name is {self.name!r}: {root} holds no such prepared data set. Make it from arrays or images with "
                f"`ddpm-jax prepare`, or, with TensorFlow installed, by `tfds build {name} "
                f"--file_format=array_record --data_dir={root}`; or set data_dir to the folder that holds it"
            )
        if version and version not in found:
            raise FileNotFoundError(f"name is {self.name!r}; the versions prepared in {root} are {', '.join(found)}")
        return found[version or list(found)[-1]]

    @cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(self._folder)
        except Exception as error:
            raise ValueError(f"{self._folder} is not a readable data set ({error}); prepare it again") from None
        formats = sorted(file_format.value for file_format in builder.info.available_file_formats())
        if "array_record" not in formats:
            found = f"{self._folder} is stored as {', '.join(formats)}, which has no random access"
            remedy = f"`tfds build {self.name} --file_format=array_record --data_dir=OTHER_FOLDER`"
            raise ValueError(f"name is {self.name!r}: {found}. Prepare it again: {remedy}")
        return builder

    @cached_property
    def _records(self) -> Any:
        """The encoded examples."""
        import tensorflow_datasets as tfds

        splits = self._builder.info.splits
        existing = ", ".join(f"{name} ({split.num_examples} examples)" for name, split in sorted(splits.items()))
        try:
            count = splits[self.split].num_examples if set(self._split_names) <= {*splits, "all"} else 0
        except Exception:
            count = 0
        if not count:
            expected = f"{existing}, or a part of one, such as 'train[:10%]'"
            raise ValueError(f"split is {self.split!r}, which is not a part of {self.name}; expected {expected}")
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return self._builder.as_data_source(self.split, deserialize_method=raw, file_format="array_record")

    @cached_property
    def _features(self) -> Any:
        """The features that hold the image and the label."""
        import tensorflow_datasets as tfds

        features = self._builder.info.features
        listed = f"the features of {self.name} are {', '.join(self.features)}"
        for field, key in (("image_key", self.image_key), ("label_key", self.label_key)):
            if key is not None and key not in features:
                raise ValueError(f"{field} is {key!r}; {listed}")
        image = features[self.image_key]
        if image.np_dtype != np.uint8 or len(image.shape) not in (2, 3):
            found = f"image_key is {self.image_key!r}, which is {_described(image)}"
            raise ValueError(f"{found}; expected uint8 [height, width, channels]; {listed}")
        label = None if self.label_key is None else features[self.label_key]
        if label is not None and (label.shape != () or not np.issubdtype(label.np_dtype, np.integer)):
            raise ValueError(f"label_key is {self.label_key!r}, which is {_described(label)}; expected an integer")
        return tfds.features.FeaturesDict({key: features[key] for key in (self.image_key, self.label_key) if key})

    def _decode(self, encoded: bytes) -> UInt8[np.ndarray, "height width channels"]:
        from PIL import Image

        channels = self._features[self.image_key].shape[-1]
        with Image.open(io.BytesIO(encoded)) as image:
            return pixels_of(image.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")))


def _versions(folder: Any) -> dict[str, Any]:
    """The prepared versions in the folder of a data set, oldest first."""
    if not folder.is_dir():
        return {}
    found = [version for version in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", version.name)]
    found = [version for version in found if all((version / name).exists() for name in DESCRIPTIONS)]
    found.sort(key=lambda version: tuple(map(int, version.name.split("."))))
    return {version.name: version for version in found}


def _described(feature: Any) -> str:
    return f"{type(feature).__name__} {feature.np_dtype} {feature.shape}"
