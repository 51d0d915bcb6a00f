"""Data sets: frozen dataclasses that an experiment file can hold.  `data.source` is the protocol.

Nothing is read before it is needed.

    Digits()                                   1,797 digits of 8x8 pixels, part of this package
    Npz("cifar10.npz", images="train_images")  arrays of a file
    Arrays.of(images, labels)                  arrays of a notebook
    Folder("~/photos", size=64)                image files
    Tfds("mnist", split="train[:10%]")         anything prepared with TensorFlow Datasets
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int, UInt8

from ddpm_jax.data.accept import as_array, check_axes, check_example, checked_images, checked_labels
from ddpm_jax.data.source import Example, Source, axes_are_known, read_many
from ddpm_jax.errors import check_fields, require
from ddpm_jax.storage.paths import local_path

__all__ = ["Arrays", "Digits", "InMemory", "Npz", "StandIn"]
__all__ += ["check_choice", "checked_arrays", "image_shape", "itself", "open_npz", "pixels_of"]


def image_shape(source: Source) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a source.

    Raises ValueError if the first example is not as `data.source` describes it, or if its axes look like another order.
    """
    if len(source) < 1:
        raise ValueError(f"{source!r} is empty; expected at least 1 example")
    example = source[0]
    check_example(example, 0)
    shape = np.shape(example["image"])
    if not axes_are_known(itself(source)):
        check_axes(shape, f'source[0]["image"] has shape {shape}', "image")
    return shape


def check_choice(name: str, value: Any, literal: Any) -> None:
    """Check that a field is one of the values of a Literal type.

    Args:
        name: the field.
        value: its value.
        literal: the type.

    Raises:
        ValueError: it is not.
    """
    require(name, value, value in get_args(literal), f"one of {', '.join(map(repr, get_args(literal)))}")


def pixels_of(image: Any) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a Pillow image, with a channel axis also if it is grey."""
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@dataclass(frozen=True)
class InMemory:
    """A source of arrays; subclasses define `arrays`."""

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


@dataclass(frozen=True)
class StandIn:
    """A source that stands for another one; subclasses define `source`."""

    @cached_property
    def source(self) -> Source:
        """The other source."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def __getitems__(self, indices: Any) -> Any:
        return read_many(self.source, indices)


def itself(source: Source) -> Source:
    """The source, or the other one if it stands for another."""
    return source.source if isinstance(source, StandIn) else source


def checked_arrays(
    images: np.ndarray, labels: np.ndarray | None, images_called: str, labels_called: str
) -> dict[str, np.ndarray]:
    """The arrays of a source in memory.

    Args:
        images: uint8 [N, height, width] (grey) or [N, height, width, channels].
        labels: integers [N]; None: there are no labels.
        images_called: the name of the images in messages.
        labels_called: the name of the labels in messages.

    Returns:
        {"image": uint8 [N, height, width, channels]} and, if there are labels, "label": int32 [N].

    Raises:
        ValueError: the arrays are not of these kinds.
    """
    arrays = {"image": checked_images(images, images_called)}
    if labels is not None:
        arrays["label"] = checked_labels(labels, len(images), labels_called)
    return arrays


_GIVEN: dict[str, dict[str, np.ndarray]] = {}


@dataclass(frozen=True)
class Arrays(InMemory):
    """Arrays of this process, made by `Arrays.of(images, labels)`.

    A run's folder stores only their digest.  To resume the run in another process, create the same arrays again.
    """

    digest: str
    """The first 16 hexadecimal digits of the SHA-256 of the images and labels."""

    @classmethod
    def of(cls, images: Any, labels: Any = None) -> "Arrays":
        """A copy of arrays as a source.

        Args:
            images: uint8 [N, height, width] (grey) or [N, height, width, channels].
            labels: integers [N] within 32 bits, the numbers of classes; None: there are no labels.

        Returns:
            The source.

        Raises:
            ValueError: the arrays are not of these kinds, or the shape of the images is ambiguous.
        """
        images, labels = as_array(images, "images"), None if labels is None else as_array(labels, "labels")
        arrays = checked_arrays(images, labels, "images", "labels")
        content = sha256()
        for name, array in arrays.items():
            content.update(f"{name} {array.shape}".encode())
            content.update(np.ascontiguousarray(array).data)
        _GIVEN[digest := content.hexdigest()[:16]] = arrays
        return cls(digest)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        if self.digest in _GIVEN:
            return _GIVEN[self.digest]
        found = f"data is Arrays({self.digest!r}), which were in the memory of the process that trained on them"
        raise ValueError(f"{found}; create them again with Arrays.of(images, labels)")


DigitsSplit = Literal["train", "test"]
DIGITS_TEST_PER_CLASS = 36


@dataclass(frozen=True)
class Digits(InMemory):
    """Handwritten digits, 8x8 pixels, grey, with labels: 1,437 for training and 360 for testing.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (1998), CC BY 4.0; the 1,797 images of scikit-learn's `load_digits`.  Their values 0..16 become
    round(255 value / 16).  The test split is the first 36 images of each class in the order of
    `numpy.random.RandomState(0).permutation(1797)`, which is the same in every version of NumPy; the training split is
    the rest, in that order.
    """

    split: DigitsSplit = "train"
    """Which part of the digits."""

    def __post_init__(self) -> None:
        check_choice("split", self.split, DigitsSplit)

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
    """Arrays of an .npz file (`numpy.savez`), read into memory."""

    path: str
    """The file."""
    images: str = "images"
    """The name of the images: uint8 [N, height, width] (grey) or [N, height, width, channels]."""
    labels: str | None = None
    """The name of the labels, integers [N]; None: there are no labels."""

    def __post_init__(self) -> None:
        check_fields(self)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        labels = None if self.labels is None else self._read("labels", self.labels)
        called = self._called("images", self.images), self._called("labels", self.labels or "")
        return checked_arrays(self._read("images", self.images), labels, *called)

    def _called(self, field: str, name: str) -> str:
        return f"{field} is {name!r}: this array of {self.path}"

    def _read(self, field: str, name: str) -> np.ndarray:
        path = local_path(self.path)
        if not path.is_file():
            raise FileNotFoundError(f"path is {self.path!r}; there is no such file")
        with open_npz(path, f"path is {self.path!r}, which") as stored:
            if name not in stored.files:
                raise ValueError(f"{field} is {name!r}; {self.path} holds {', '.join(sorted(stored.files))}")
            try:
                return stored[name]
            except Exception as error:
                remedy = "write the file again, as numbers" if "allow_pickle" in str(error) else f"the file {DAMAGED}"
                raise ValueError(f"{self._called(field, name)} cannot be read ({error}); {remedy}") from None


DAMAGED = "is damaged or not complete; write or fetch it again"


def open_npz(path: Path, called: str) -> Any:
    """Open an .npz file.

    Args:
        path: the file.
        called: the start of the message.

    Returns:
        What `numpy.load` returns.

    Raises:
        ValueError: the file is not a complete .npz file.
    """
    with path.open("rb") as file:
        head = file.read(6)
    if head[:4] not in (b"PK\x03\x04", b"PK\x05\x06", b""):
        array = "holds one array, an .npy file" if head == b"\x93NUMPY" else "is not an .npz file"
        raise ValueError(f"{called} {array}; write one with numpy.savez")
    try:
        return np.load(path)
    except Exception:  # of zipfile, NumPy or zlib
        raise ValueError(f"{called} {DAMAGED}") from None
