"""Data sets.  A source is a sequence of examples, read by index in any order:

    len(source)     the number of examples
    source[i]       {"image": uint8 [height, width, channels]}, and "label": an int32, if there are labels

and, where it is faster, source.__getitems__(indices), a list of such examples or one dictionary of stacked
arrays.  Any class with the first two is a source.  Those here are frozen dataclasses, at once
what is written in an experiment file and the data: nothing is read before it is asked for.

    Digits()                                   1,797 digits of 8x8 pixels, part of this package
    Npz("cifar10.npz", images="train_images")  arrays
    Folder("~/photos", size=64)                image files
    Tfds("mnist", split="train[:10%]")         anything prepared with TensorFlow Datasets
"""

import io
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

Example = dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def image_shape(source: Source) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a source.

    Raises ValueError where the first example is not as this module's head describes it.
    """
    if len(source) < 1:
        raise ValueError(f"{source!r} is empty; expected at least 1 example")
    example = source[0]
    if not isinstance(example, Mapping) or "image" not in example:
        found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
        raise ValueError(f'source[0] is {found}; expected a dictionary {{"image": uint8 [height, width, channels]}}')
    check_image(example["image"], 0)
    return example["image"].shape


def check_image(image: Any, index: int) -> None:
    """Raise ValueError unless source[index]["image"] is uint8 [height, width, channels]."""
    dtype, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
    if dtype != np.uint8 or len(shape) != 3:
        raise ValueError(
            f'source[{index}]["image"] is {dtype} {list(shape)}; expected uint8 [height, width, channels] '
            "with values 0..255 (grey images: image[..., None])"
        )


def _check_choice(name: str, value: Any, literal: Any) -> None:
    if value not in get_args(literal):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(literal)))}")


@dataclass(frozen=True)
class InMemory:
    """A source of arrays; subclasses give `arrays`."""

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """{"image": uint8 [N, height, width, channels]} and, if there are labels, "label": int32 [N]."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, index: int) -> Example:
        return {key: array[index] for key, array in self.arrays.items()}

    def __getitems__(self, indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        return {key: array[indices] for key, array in self.arrays.items()}


DigitsSplit = Literal["train", "test"]
DIGITS_TEST_PER_CLASS = 36


@dataclass(frozen=True)
class Digits(InMemory):
    """Handwritten digits, 8x8 pixels, grey, with labels: 1,437 for training and 360 for testing.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (1998), CC BY 4.0; the 1,797 that scikit-learn's `load_digits` gives.  Their values 0..16 become
    round(255 value / 16).  The test split is the first 36 of each class in the order of
    `numpy.random.RandomState(0).permutation(1797)`, whose numbers NumPy promises to keep; the training
    split is the rest, in that order.
    """

    split: DigitsSplit = "train"
    """Which part of the digits."""

    def __post_init__(self) -> None:
        _check_choice("split", self.split, DigitsSplit)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with (resources.files("ddpm_jax.data") / "digits.npz").open("rb") as file, np.load(file) as stored:
            values, labels = stored["images"], stored["labels"].astype(np.int32)
        order = np.random.RandomState(0).permutation(len(labels))
        is_test = np.zeros(len(labels), bool)
        for label in range(10):
            is_test[order[labels[order] == label][:DIGITS_TEST_PER_CLASS]] = True
        chosen = order[is_test[order] == (self.split == "test")]
        pixels = np.rint(values[chosen] * (255 / 16)).astype(np.uint8)
        return {"image": pixels[..., None], "label": labels[chosen]}


@dataclass(frozen=True)
class Npz(InMemory):
    """Arrays of an .npz file (`numpy.savez`), read whole into memory."""

    path: str
    """The file."""
    images: str = "images"
    """The name of the images: uint8 [N, height, width] (grey) or [N, height, width, channels]."""
    labels: str | None = None
    """The name of the labels, integers [N]; None for none."""

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {"image": self._images()}
        if self.labels is not None:
            arrays["label"] = self._labels(self.labels, len(arrays["image"]))
        return arrays

    def _images(self) -> UInt8[np.ndarray, "N height width channels"]:
        images = self._read("images", self.images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"{self._called('images', self.images)} has dtype {images.dtype}; expected uint8 with values 0..255. "
                "Floats in [0, 1] are converted by np.round(255 * images).astype(np.uint8)"
            )
        channels_first = images.ndim == 4 and images.shape[3] > 4 >= images.shape[1]
        if images.ndim not in (3, 4) or len(images) == 0 or channels_first:
            raise ValueError(
                f"{self._called('images', self.images)} has shape {images.shape}; expected (N, height, width) or "
                "(N, height, width, channels) with N at least 1. Channels are moved to the end by "
                "np.moveaxis(images, 1, -1)"
            )
        return images if images.ndim == 4 else images[..., None]

    def _labels(self, name: str, count: int) -> Int32[np.ndarray, " N"]:
        labels = self._read("labels", name)
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{self._called('labels', name)} is {labels.dtype} {list(labels.shape)}; expected one integer for "
                f"each image, shape ({count},)"
            )
        return labels.astype(np.int32)

    def _called(self, field: str, name: str) -> str:
        return f"{field} is {name!r}: this array of {self.path}"

    def _read(self, field: str, name: str) -> np.ndarray:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"path is {self.path!r}; there is no such file")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"path is {self.path!r}, which is not an .npz file; write one with numpy.savez")
        with np.load(path) as stored:
            if name not in stored.files:
                raise ValueError(f"{field} is {name!r}; {self.path} holds {', '.join(sorted(stored.files))}")
            try:
                return stored[name]
            except Exception as error:
                raise ValueError(
                    f"{self._called(field, name)} cannot be read ({error}); write the file again, as numbers"
                ) from None


Fit = Literal["cover", "stretch", "crop"]
Resample = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Folder:
    """The image files of a folder and its sub-folders, in the order of their names.

    Photographs are turned upright as their EXIF data say, transparent parts are laid over white, and of an
    animation the first frame is taken.  Hidden files are passed over.
    """

    path: str
    """The folder."""
    size: int | None = None
    """Images become size x size pixels; None: they stay as they are, and must all have one size."""
    fit: Fit = "cover"
    """How they become square: cover: the largest centred square, resized; stretch: height and width resized
    each for itself; crop: the centre, not resized."""
    resample: Resample = "lanczos"
    """The filter that resizes; all but nearest smooth when they make an image smaller."""
    channels: Literal[1, 3] | None = None
    """1 converts all to grey, 3 all to RGB; None: they stay as they are, and must all be grey or all colour."""
    labels: bool = False
    """Whether the sub-folders of the folder are classes, numbered in the order of their names."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1 pixel, or None to leave the size as it is")
        _check_choice("fit", self.fit, Fit)
        _check_choice("resample", self.resample, Resample)
        if self.channels not in (1, 3, None):
            raise ValueError(f"channels is {self.channels}; expected 1, 3 or None")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order of the examples."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"path is {self.path!r}; there is no such folder")
        found = sorted(
            file
            for file in self._root.rglob("*")
            if file.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in self._parts(file))
        )
        if not found:
            raise ValueError(f"path is {self.path!r}, where no image was found; looked for {' '.join(EXTENSIONS)}")
        return tuple(found)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes 0, 1, ...: the sub-folders."""
        for file in self.files:
            if len(self._parts(file)) < 2:
                raise ValueError(f"labels is True, but {file} is in no sub-folder; move it into that of its class")
        return tuple(sorted({self._parts(file)[0] for file in self.files}))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        file = self.files[index]
        image = self._read(file)
        if image.shape != self._shape:
            raise ValueError(self._mixed(file, image.shape))
        if not self.labels:
            return {"image": image}
        return {"image": image, "label": np.int32(self.class_names.index(self._parts(file)[0]))}

    @cached_property
    def _root(self) -> Path:
        return Path(self.path).expanduser()

    def _parts(self, file: Path) -> tuple[str, ...]:
        return file.relative_to(self._root).parts

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return self._read(self.files[0]).shape

    def _mixed(self, file: Path, shape: tuple[int, ...]) -> str:
        first = self.files[0]
        if shape[2] != self._shape[2]:
            return (
                f"channels is None, but {file} has {shape[2]} and {first} has {self._shape[2]}; "
                "channels=3 (--data.channels 3) converts all to RGB, channels=1 all to grey"
            )
        return (
            f"size is None, but {file} is {shape[0]}x{shape[1]} pixels and {first} is "
            f"{self._shape[0]}x{self._shape[1]}; size=64 (--data.size 64) makes all 64x64"
        )

    def _read(self, file: Path) -> UInt8[np.ndarray, "height width channels"]:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                image = _eight_bits(ImageOps.exif_transpose(opened), self.channels)
        except Exception as error:
            raise ValueError(f"{file} cannot be read as an image ({error}); repair it or delete it") from None
        filter = Image.Resampling[self.resample.upper()]
        if self.size is None:
            pass
        elif self.fit == "stretch":
            image = image.resize((self.size, self.size), filter)
        elif self.fit == "cover":
            image = ImageOps.fit(image, (self.size, self.size), filter)
        elif min(image.size) < self.size:
            raise ValueError(
                f"fit is 'crop' and size is {self.size}, but {file} is {image.height}x{image.width} pixels; "
                f"give a size of at most {min(image.size)}, or fit='cover' to resize"
            )
        else:
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        return _pixels(image)


def _eight_bits(image: Any, channels: int | None) -> Any:
    """A Pillow image in mode L (1 channel) or RGB (3); None: the one it is stored in."""
    from PIL import Image

    if image.mode[0] in "IF":
        raise ValueError(f"it has more than 8 bits a channel, Pillow's mode {image.mode}: convert it to 8 bits")
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _pixels(image: Any) -> UInt8[np.ndarray, "height width channels"]:
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def tfds_root(data_dir: str | None) -> str:
    """The folder of TensorFlow Datasets' data sets: data_dir, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


@dataclass(frozen=True)
class Tfds:
    """A data set prepared with TensorFlow Datasets in the array_record format, read without TensorFlow.

    `ddpm-jax prepare` makes one from any other source; where TensorFlow is installed, so does
    `tfds build NAME --file_format=array_record`.  Nothing is ever downloaded here.
    """

    name: str
    """NAME, NAME/CONFIG, and either with :VERSION; without a version, the newest that is prepared."""
    split: str = "train"
    """A split, a part of one ('train[:10%]', 'train[1000:]') or a sum of them ('train+test')."""
    data_dir: str | None = None
    """The folder of all data sets; None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    image_key: str = "image"
    """The feature that is the image."""
    label_key: str | None = None
    """The feature that is the label, an integer; None for none."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", self.name):
            raise ValueError(f"name is {self.name!r}; expected NAME, NAME/CONFIG, or either with :MAJOR.MINOR.PATCH")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> list[Example]:
        # One read of many records is faster than many reads.
        return [
            self._example(int(index), record)
            for index, record in zip(indices, self._records.__getitems__([int(i) for i in indices]), strict=True)
        ]

    def _example(self, index: int, record: bytes) -> Example:
        features = self._features
        try:
            example = features.deserialize_example_np(record, decoders=self._decoders)
            image = example[self.image_key]
            image = self._decode(image) if self._is_encoded else np.asarray(image)
        except Exception as error:
            raise ValueError(f"example {index} of {self._folder} cannot be read ({error}); prepare it again") from None
        image = image if image.ndim == 3 else image[..., None]
        if self.label_key is None:
            return {"image": image}
        return {"image": image, "label": np.int32(example[self.label_key])}

    @cached_property
    def _folder(self) -> Any:
        """The folder of the version to read: root/NAME[/CONFIG]/VERSION."""
        from etils import epath

        root = epath.Path(tfds_root(self.data_dir))
        name, _, version = self.name.partition(":")
        found = _versions(root / name)
        if not found and "/" not in name and (root / name).is_dir():
            configs = sorted(folder.name for folder in (root / name).iterdir() if _versions(folder))
            if len(configs) == 1:
                found = _versions(root / name / configs[0])
            elif configs:
                raise ValueError(
                    f"name is {self.name!r}; name one of its configurations: "
                    + ", ".join(f"{name}/{config}" for config in configs)
                )
        if not found:
            raise FileNotFoundError(
                f"name is {self.name!r}: {root} holds no such prepared data set. Make it from arrays or images with "
                f"`ddpm-jax prepare`, or where TensorFlow is installed with `tfds build {name} "
                f"--file_format=array_record --data_dir={root}`; or give the data_dir that holds it"
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
            raise ValueError(
                f"name is {self.name!r}: {self._folder} is stored as {', '.join(formats)}, which has no random access. "
                f"Prepare it again: `tfds build {self.name} --file_format=array_record --data_dir=OTHER_FOLDER`"
            )
        return builder

    @cached_property
    def _records(self) -> Any:
        """The undecoded examples."""
        import tensorflow_datasets as tfds

        splits = self._builder.info.splits
        existing = ", ".join(f"{name} ({split.num_examples} examples)" for name, split in sorted(splits.items()))
        names = [part.partition("[")[0].strip() for part in self.split.split("+")]
        try:
            count = splits[self.split].num_examples if set(names) <= {*splits, "all"} else 0
        except Exception:
            count = 0
        if not count:
            raise ValueError(
                f"split is {self.split!r}, which is no part of {self.name}; it has {existing}, "
                "and parts of them such as 'train[:10%]'"
            )
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return self._builder.as_data_source(self.split, deserialize_method=raw, file_format="array_record")

    @cached_property
    def _features(self) -> Any:
        """The image and the label, of all the features that the records hold."""
        import tensorflow_datasets as tfds

        features = self._builder.info.features
        for field, key in (("image_key", self.image_key), ("label_key", self.label_key)):
            if key is not None and key not in features:
                raise ValueError(f"{field} is {key!r}; the features of {self.name} are {', '.join(sorted(features))}")
        image = features[self.image_key]
        if image.np_dtype != np.uint8 or len(image.shape) not in (2, 3):
            raise ValueError(
                f"image_key is {self.image_key!r}, which is {_described(image)}; expected uint8 "
                f"[height, width, channels]; the features of {self.name} are {', '.join(sorted(features))}"
            )
        if self.label_key is not None:
            label = features[self.label_key]
            if label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
                raise ValueError(f"label_key is {self.label_key!r}, which is {_described(label)}; expected an integer")
        wanted = [key for key in (self.image_key, self.label_key) if key is not None]
        return tfds.features.FeaturesDict({key: features[key] for key in wanted})

    @cached_property
    def _is_encoded(self) -> bool:
        import tensorflow_datasets as tfds

        return isinstance(self._features[self.image_key], tfds.features.Image)

    @cached_property
    def _decoders(self) -> Any:
        import tensorflow_datasets as tfds

        return {self.image_key: tfds.decode.SkipDecoding()} if self._is_encoded else None

    def _decode(self, encoded: bytes) -> UInt8[np.ndarray, "height width channels"]:
        from PIL import Image

        channels = self._features[self.image_key].shape[-1]
        with Image.open(io.BytesIO(encoded)) as image:
            return _pixels(image.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")))


def _versions(folder: Any) -> dict[str, Any]:
    """The prepared versions in the folder of a data set, oldest first."""
    if not folder.is_dir():
        return {}
    found = {
        version.name: version
        for version in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", version.name)
        and all((version / name).exists() for name in ("dataset_info.json", "features.json"))
    }
    return dict(sorted(found.items(), key=lambda item: tuple(map(int, item[0].split(".")))))


def _described(feature: Any) -> str:
    return f"{type(feature).__name__} {feature.np_dtype} {feature.shape}"
