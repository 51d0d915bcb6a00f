"""Which arrays are accepted as images and as labels, and how to convert others.

    images    uint8 [N, height, width] (grey) or [N, height, width, channels], values 0..255
    labels    integers [N], each the number of a class, within 32 bits

An array does not state what its axes mean.  If its shape also fits a series, a single image, or images with channels
first, the array is refused.  The message then shows one call for each meaning.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from ddpm_jax.errors import short_repr

__all__ = ["as_array", "as_label", "check_axes", "check_example", "check_labels"]
__all__ += ["checked_images", "checked_labels", "described_images"]

# More channels than an image file has.
MOST_CHANNELS = 4
KINDS = {1: "grey images", 3: "RGB images", 4: "RGBA images"}
# (lowest, highest value, the call that scales such floats to 0..255)
FLOATS = ((0, 1, "np.round(255 * images)"), (-1, 1, "np.round(127.5 * (images + 1))"), (0, 255, "np.round(images)"))


def described_images(count: int, shape: Sequence[int]) -> str:
    """Images in words: "64 grey images of 256x2" (height x width).

    Args:
        count: the number of images.
        shape: (height, width, channels).

    Returns:
        The words.
    """
    height, width, channels = shape
    kind = KINDS.get(channels, f"images with {channels} channels")
    return f"{count:,} {kind if count != 1 else kind.replace('images', 'image')} of {height}x{width}"


def as_array(values: Any, called: str) -> Shaped[np.ndarray, "..."]:
    """A NumPy copy of an array, or of a list of arrays.

    Args:
        values: the array or list.
        called: its name in messages.

    Returns:
        The array.

    Raises:
        ValueError: the arrays of a list differ in shape, or the values are not numbers.
    """
    if isinstance(values, Mapping):
        raise ValueError(f"{called} is a {type(values).__name__} with {sorted(map(str, values))}; expected one array")
    with suppress(ValueError):
        array = np.array(values)
        if array.dtype != object:
            return array
    try:
        shapes = [np.shape(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{called} cannot be made an array; expected numbers, all of one shape") from None
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            remedy = ": resize them, as Folder(size=...) does with image files" if called == "images" else ""
            found = f"{called}[0] is {shapes[0]} and {called}[{index}] is {shape}"
            raise ValueError(f"{called} differ in shape: {found}; expected one shape{remedy}")
    wrong = next((i for i, value in enumerate(values) if np.asarray(value).dtype.kind not in "biuf"), 0)
    found = f"{called}[{wrong}] is {short_repr(values[wrong])}, which NumPy keeps as a Python object"
    raise ValueError(f"{found}; expected numbers{', within 32 bits' if called == 'labels' else ''}")


def checked_images(images: np.ndarray, called: str) -> UInt8[np.ndarray, "N height width channels"]:
    """The images with a channel axis.

    Args:
        images: uint8 [N, height, width] or [N, height, width, channels].
        called: their name in messages.

    Returns:
        The images [N, height, width, channels].

    Raises:
        ValueError: the array is not of this kind, or its shape is ambiguous.
    """
    if images.dtype != np.uint8:
        expected = f"uint8 with values 0..255. {_conversion_of(images)}"
        raise ValueError(f"{called} has dtype {images.dtype}; expected {expected}")
    found = f"{called} has shape {images.shape}"
    if images.ndim not in (3, 4) or min(images.shape) == 0:
        side = round(images.shape[-1] ** 0.5) if images.ndim == 2 else 0
        square = f"images.reshape(-1, {side}, {side}), " if side > 1 and side * side == images.shape[-1] else ""
        expected = "(N, height, width) or (N, height, width, channels), with N at least 1"
        raise ValueError(f"{found}; expected {expected}. {square}images[..., None] and images[None] add axes")
    if images.ndim == 4:
        check_axes(images.shape, found, "images")
        return images
    n, height, width = images.shape
    if others := _other_meanings(n, height, width):
        calls = ", or ".join([f"images[..., None] for {described_images(n, (height, width, 1))}", *others])
        raise ValueError(f"{found}, which is ambiguous: expected (N, height, width, channels). Write {calls}")
    return images[..., None]


def _other_meanings(n: int, height: int, width: int) -> list[str]:
    """Calls that an array [n, height, width] may need if it does not hold n grey images."""
    if height != width and width <= MOST_CHANNELS:
        series = f"{n:,} series of {height} steps with {width} channels, as images of width 1"
        return [f"images[None] for {described_images(1, (n, height, width))}", f"images[:, :, None] for {series}"]
    if height != width and height <= MOST_CHANNELS:
        series = f"{n:,} series of {width} steps with {height} channels, as images of width 1"
        return [f"images.transpose(0, 2, 1)[:, :, None] for {series}"]
    if n == height != width:
        matlab = f"{described_images(width, (n, height, 1))}, as in MATLAB's files"
        return [f"images.transpose(2, 0, 1)[..., None] for {matlab}"]
    if n == 3 and min(height, width) > MOST_CHANNELS:
        return ["images.transpose(1, 2, 0)[None] for one RGB image"]
    return []


def check_example(example: Any, index: int) -> None:
    """Check an example of a source.

    Args:
        example: source[index].
        index: its number.

    Raises:
        ValueError: it is not a dictionary with "image": uint8 [height, width, channels].
    """
    if not (isinstance(example, Mapping) and "image" in example):
        found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
        raise ValueError(
            f'source[{index}] is {found}; expected a dictionary {{"image": uint8 [height, width, channels]}}, and '
            '"label" if there are labels (Arrays.of(images, labels) makes a source of arrays)'
        )
    image = example["image"]
    dtype, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
    if dtype != np.uint8 or len(shape) != 3 or min(shape) == 0:
        is_other = isinstance(image, np.ndarray) and dtype != np.uint8
        conversion = ". " + _conversion_of(image).replace("images", "image") if is_other else ""
        expected = f"uint8 [height, width, channels] with values 0..255 (grey images: image[..., None]){conversion}"
        raise ValueError(f'source[{index}]["image"] is {dtype} {list(shape)}; expected {expected}')


def check_axes(shape: Sequence[int], found: str, name: str) -> None:
    """Check that the axes look like height, width and channels.

    Args:
        shape: (height, width, channels), with or without the number of images in front.
        found: the start of the message: what has which shape.
        name: the name of the array in the proposed calls.

    Raises:
        ValueError: another order of the axes looks right, and this one does not.
    """
    *before, height, width, channels = shape
    if _looks_right(height, width, channels):
        return
    same, readings = tuple(range(first := len(before))), {}
    if _looks_right(width, channels, height):
        readings[f"{height} channels of {width}x{channels}"] = (*same, first + 1, first + 2, first)
    if _looks_right(height, channels, width):
        readings[f"{width} channels of {height}x{channels}"] = (*same, first, first + 2, first + 1)
    if before and width <= MOST_CHANNELS < channels and _looks_right(before[0], height, width):
        readings[f"{channels:,} images of {before[0]}x{height}, as in MATLAB's files"] = (3, 0, 1, 2)
    if not readings:
        return
    if _looks_right(width, height, channels):
        readings["these axes, with height and width exchanged"] = (*same, first + 1, first, first + 2)
    listed = "; ".join(f"{name}.transpose{axes} for {meaning}" for meaning, axes in readings.items())
    found += f": height {height}, width {width} and {channels} channels, which looks like another order of the axes"
    unchecked = "(The axes of a source with axes_are_known = True are not checked.)"
    raise ValueError(f"{found}. Write {listed}. {unchecked}")


def _looks_right(height: int, width: int, channels: int) -> bool:
    """Whether these sizes are likely in this order."""
    if channels == 1 or height == width:
        return True
    channels_first = width == channels or (height < channels and height <= MOST_CHANNELS <= channels)
    return not (channels_first or width <= MOST_CHANNELS < channels)


def _conversion_of(images: np.ndarray) -> str:
    """How to convert an array of another dtype to uint8, judged by its values."""
    if images.dtype == bool:
        return "False and True become 0 and 255 by images.astype(np.uint8) * 255"
    if images.dtype.kind not in "iuf":
        return "Convert them to numbers 0..255 first"
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        return "Some values are not finite: replace them first"
    for least, most, scaled in FLOATS if images.dtype.kind == "f" else ((0, 255, "images"),):
        if least <= low and high <= most:
            return f"Values in [{least}, {most}] are converted by {scaled}.astype(np.uint8)"
    if images.dtype == np.uint16:
        return "16-bit images are converted by np.round(images / 257).astype(np.uint8)"
    return f"Their values are {low:g} to {high:g}: scale them to 0..255, round, then .astype(np.uint8)"


def checked_labels(labels: np.ndarray, count: int, called: str) -> Int32[np.ndarray, " N"]:
    """The labels as int32.

    Args:
        labels: integers [count].
        count: the number of images.
        called: the name of the labels in messages.

    Returns:
        The labels.

    Raises:
        ValueError: the array is not of this kind, or a label does not fit into 32 bits.
    """
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        expected = f"one integer for each image, shape ({count},){_remedy_of(labels, 'labels')}"
        raise ValueError(f"{called} is {labels.dtype} {list(labels.shape)}; expected {expected}")
    if len(wide := np.flatnonzero((labels < -(2**31)) | (labels >= 2**31))):
        found = f"{called} has {labels[wide[0]]} at position {wide[0]}, which does not fit into 32 bits"
        remedy = "np.unique(labels, return_inverse=True)[1] numbers them 0, 1, ..."
        raise ValueError(f"{found}; expected the number of a class: {remedy}")
    return labels.astype(np.int32)


def as_label(value: Any, index: int) -> np.int32:
    """A label as int32.

    Args:
        value: source[index]["label"].
        index: the number of the example.

    Returns:
        The label.

    Raises:
        ValueError: the value is not one integer within 32 bits.
    """
    array = np.asarray(None)
    with suppress(ValueError):
        array = np.asarray(value)
    is_integer = array.shape == () and array.dtype.kind in "iu"
    if is_integer and -(2**31) <= array < 2**31:
        return np.int32(array)
    shown = repr(value) if array.ndim == 0 and len(repr(value)) < 80 else f"{array.dtype} {list(array.shape)}"
    remedy = "; number the classes 0, 1, ..." if is_integer else _remedy_of(array[None], "label")
    raise ValueError(f'source[{index}]["label"] is {shown}; expected one integer, within 32 bits{remedy}')


def _remedy_of(labels: np.ndarray, name: str) -> str:
    """How to convert labels of another kind to integers, as the end of a message; "" if that is not known."""
    kind = labels.dtype.kind
    if kind in "US":
        return "; np.unique(labels, return_inverse=True)[1] numbers the classes"
    if labels.ndim == 2 and labels.shape[1] == 1:
        return f"; np.squeeze({name}, -1) has that shape"
    if labels.ndim == 2 and kind in "biuf":
        return f"; one-hot vectors are converted by np.argmax({name}, -1)"
    if labels.ndim != 1 or kind not in "bf" or not labels.size:
        return ""
    if np.all(labels == np.round(labels)):
        return f"; these values are converted by np.int32({name})"
    return f"; {labels[0]} is not the number of a class"


def check_labels(batch: Mapping[str, np.ndarray], num_classes: int | None, field: str = "net.num_classes") -> None:
    """Check the labels of a batch; compiled code would not notice a wrong one.

    Args:
        batch: the batch, with "label" if `num_classes` is not None.
        num_classes: the number of classes of the network; None: it has none.
        field: the name of `num_classes` in messages.

    Raises:
        ValueError: a label is not a class of the network.
    """
    if num_classes is None:
        return
    wrong = batch["label"][(batch["label"] < 0) | (batch["label"] >= num_classes)]
    if wrong.size:
        raise ValueError(f"the data have the label {wrong[0]}; {field} is {num_classes}")
