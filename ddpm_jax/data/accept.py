"""Which arrays are images and which are labels; what is wrong with others, and how they are converted.

    images    uint8 [N, height, width] (grey) or [N, height, width, channels], values 0..255
    labels    whole numbers [N], each the number of a class, within 32 bits

An array does not say what its axes mean.  Where the shape fits a series, one image, or images with their channels
first as well as it fits images, the array is refused, and the message shows how to say what is meant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from ddpm_jax.errors import short_repr

# More channels than an image file has.
MOST_CHANNELS = 4
KINDS = {1: "grey images", 3: "RGB images", 4: "RGBA images"}


def described_images(count: int, shape: Sequence[int]) -> str:
    """How images are interpreted, in words: "64 grey images of 256x2" (height x width)."""
    height, width, channels = shape
    kind = KINDS.get(channels, f"images with {channels} channels")
    kind = kind if count != 1 else kind.replace("images", "image")
    return f"{count:,} {kind} of {height}x{width}"


def as_array(values: Any, called: str) -> Shaped[np.ndarray, "..."]:
    """A NumPy copy of an array, or of a list of arrays.

    Raises ValueError where the arrays of a list differ in shape, or are no numbers.
    """
    if isinstance(values, Mapping):
        raise ValueError(f"{called} is a {type(values).__name__} with {sorted(map(str, values))}; expected one array")
    try:
        array = np.array(values)
    except ValueError:
        array = None
    if array is not None and array.dtype != object:
        return array
    try:
        shapes = [np.shape(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{called} cannot be made an array; expected numbers, all of one shape") from None
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            remedy = ": resize them, as Folder(size=...) does with image files" if called == "images" else ""
            raise ValueError(
                f"{called} differ in shape: {called}[0] is {shapes[0]} and {called}[{index}] is {shape}; expected one "
                f"shape{remedy}"
            )
    wrong = next((i for i, value in enumerate(values) if not _fits_into_an_array(value)), 0)
    raise ValueError(
        f"{called}[{wrong}] is {short_repr(values[wrong])}, which NumPy keeps as a Python object; expected numbers"
        f"{', within 32 bits' if called == 'labels' else ''}"
    )


def _fits_into_an_array(value: Any) -> bool:
    array = np.asarray(value)
    return array.dtype != object and array.dtype.kind in "biuf"


def checked_images(images: np.ndarray, called: str) -> UInt8[np.ndarray, "N height width channels"]:
    """The images with a channel axis.

    Args:
        images: uint8 [N, height, width] or [N, height, width, channels].
        called: what the error calls them.

    Raises ValueError where they are something else, or where the shape is ambiguous.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"{called} has dtype {images.dtype}; expected uint8 with values 0..255. {_conversion_of(images)}"
        )
    if images.ndim == 3:
        _refuse_no_images(images, called)
    if images.ndim not in (3, 4) or min(images.shape) == 0:
        side = round(images.shape[-1] ** 0.5) if images.ndim == 2 else 0
        square = f"images.reshape(-1, {side}, {side}), " if side > 1 and side * side == images.shape[-1] else ""
        raise ValueError(
            f"{called} has shape {images.shape}; expected (N, height, width) or (N, height, width, channels), "
            f"with N at least 1. {square}images[..., None] and images[None] add axes"
        )
    if images.ndim == 3:
        return images[..., None]
    check_axes(images.shape, f"{called} has shape {images.shape}", "images")
    return images


def check_example(example: Any, index: int) -> None:
    """Raise ValueError unless source[index] is a dictionary with an image as it should be."""
    if isinstance(example, Mapping) and "image" in example:
        check_image(example["image"], index)
        return
    found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
    raise ValueError(
        f'source[{index}] is {found}; expected a dictionary {{"image": uint8 [height, width, channels]}}, and "label" '
        "if there are labels (Arrays.of(images, labels) makes a source of arrays)"
    )


def check_image(image: Any, index: int) -> None:
    """Raise ValueError unless source[index]["image"] is uint8 [height, width, channels]."""
    dtype, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
    if dtype != np.uint8 or len(shape) != 3 or min(shape) == 0:
        raise ValueError(
            f'source[{index}]["image"] is {dtype} {list(shape)}; expected uint8 [height, width, channels] '
            f"with values 0..255 (grey images: image[..., None]){_hint(image)}"
        )


def check_axes(shape: Sequence[int], found: str, name: str) -> None:
    """Raise ValueError where the axes look like another order than height, width and channels.

    Only where another order looks right: every shape can be brought into one that is accepted.

    Args:
        shape: (height, width, channels), perhaps with the number of images before them.
        found: the start of the message: what has which shape.
        name: the array in the remedies, which are calls of its method `transpose`.
    """
    *before, height, width, channels = shape
    if _looks_right(height, width, channels):
        return
    orders = {
        f"{height} channels of {width}x{channels}": (1, 2, 0),
        f"{width} channels of {height}x{channels}": (0, 2, 1),
    }
    first = len(before)
    readings = {
        what: (*range(first), *(first + axis for axis in order))
        for what, order in orders.items()
        if _looks_right(*((height, width, channels)[axis] for axis in order))
    }
    if before and width <= MOST_CHANNELS < channels and _looks_right(before[0], height, width):
        readings[f"{channels:,} images of {before[0]}x{height}, as in MATLAB's files"] = (3, 0, 1, 2)
    if not readings:
        return
    if _looks_right(width, height, channels):
        readings["what it says (the images are laid on their side)"] = (*range(first), first + 1, first, first + 2)
    listed = "; ".join(f"{name}.transpose{axes} for {what}" for what, axes in readings.items())
    raise ValueError(
        f"{found}, which says height {height}, width {width} and {channels} channels, and looks like another order of "
        f"the axes. Write {listed}. (A source that sets axes_are_known = True is taken at its word.)"
    )


def _looks_right(height: int, width: int, channels: int) -> bool:
    """Whether these are likely in this order."""
    if channels == 1 or height == width:
        return True
    channels_first = width == channels or (height < channels and height <= MOST_CHANNELS <= channels)
    return not (channels_first or width <= MOST_CHANNELS < channels)


def _refuse_no_images(images: np.ndarray, called: str) -> None:
    """Raise ValueError where [N, height, width] may be one image with channels, or series."""
    n, height, width = images.shape
    told = f"{called} has shape {images.shape}, which is ambiguous"
    as_images = f"images[..., None] for {described_images(n, (height, width, 1))}"
    is_square = height == width
    if 1 <= width <= MOST_CHANNELS and not is_square:
        raise ValueError(
            f"{told}: expected (N, height, width, channels). Write {as_images}, images[None] for "
            f"{described_images(1, images.shape)}, or images[:, :, None] for {n:,} series of {height} steps with "
            f"{width} channels, as images of width 1"
        )
    if 1 <= height <= MOST_CHANNELS and not is_square:
        raise ValueError(
            f"{told}: expected (N, height, width, channels). Write {as_images}, or "
            f"images.transpose(0, 2, 1)[:, :, None] for {n:,} series of {width} steps with {height} channels, as "
            "images of width 1"
        )
    if n == height != width:
        raise ValueError(
            f"{told}: expected (N, height, width). Write {as_images}, or images.transpose(2, 0, 1)[..., None] for "
            f"{described_images(width, (n, height, 1))}, as in MATLAB's files"
        )
    if n == 3 and min(height, width) > MOST_CHANNELS:
        raise ValueError(
            f"{told}: expected (N, height, width, channels). Write {as_images}, or images.transpose(1, 2, 0)[None] "
            "for one RGB image"
        )


def _conversion_of(images: np.ndarray) -> str:
    """How an array of another dtype becomes uint8, judged by its values."""
    if images.dtype == bool:
        return "False and True become 0 and 255 by images.astype(np.uint8) * 255"
    if not np.issubdtype(images.dtype, np.number) or np.iscomplexobj(images):
        return "Convert them to numbers 0..255 first"
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        return "Some values are not finite: replace these first"
    if np.issubdtype(images.dtype, np.integer):
        if low >= 0 and high <= 255:
            return f"Their values, {low:.0f} to {high:.0f}, are converted by images.astype(np.uint8)"
        if images.dtype == np.uint16:
            return "16-bit images are converted by np.round(images / 257).astype(np.uint8)"
        return f"Their values are {low:.0f} to {high:.0f}: scale them to 0..255, round, then .astype(np.uint8)"
    if low >= 0 and high <= 1:
        return "Floats in [0, 1] are converted by np.round(255 * images).astype(np.uint8)"
    if low >= -1 and high <= 1:
        return "Floats in [-1, 1] are converted by np.round(127.5 * (images + 1)).astype(np.uint8)"
    if low >= 0 and high <= 255:
        return f"Their values, {low:.4g} to {high:.4g}, are converted by np.round(images).astype(np.uint8)"
    return f"Their values are {low:.4g} to {high:.4g}: scale them to 0..255, round, then .astype(np.uint8)"


def _hint(image: Any) -> str:
    """ ". " and how an image of another dtype is converted, where that is what is wrong with it."""
    if not isinstance(image, np.ndarray) or image.dtype == np.uint8:
        return ""
    return ". " + _conversion_of(image).replace("images", "image")


def checked_labels(labels: np.ndarray, count: int, called: str) -> Int32[np.ndarray, " N"]:
    """The labels as int32.

    Args:
        labels: whole numbers [count].
        count: the number of images.
        called: what the error calls them.

    Raises ValueError where they are something else, or where one does not fit into 32 bits.
    """
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{called} is {labels.dtype} {list(labels.shape)}; expected one integer for each image, "
            f"shape ({count},){_remedy_of(labels, count)}"
        )
    wide = np.flatnonzero((labels < -(2**31)) | (labels >= 2**31)) if labels.dtype.itemsize >= 4 else []
    if len(wide):
        raise ValueError(
            f"{called} has {labels[wide[0]]} at place {wide[0]}, which does not fit into 32 bits; expected the number "
            "of a class: np.unique(labels, return_inverse=True)[1] numbers them 0, 1, ..."
        )
    return labels.astype(np.int32)


def as_label(value: Any, index: int) -> np.int32:
    """source[index]["label"] as int32.

    Raises ValueError where it is anything but one whole number within 32 bits.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.shape == () and np.issubdtype(array.dtype, np.integer) and -(2**31) <= array < 2**31:
        return np.int32(array)
    shown = repr(value) if array.ndim == 0 and len(repr(value)) < 80 else f"{array.dtype} {list(array.shape)}"
    remedy = _remedy_of(array[None], 1, "label") if array.dtype != object else ""
    if array.shape == () and np.issubdtype(array.dtype, np.integer):
        remedy = "; number the classes 0, 1, ..."
    raise ValueError(f'source[{index}]["label"] is {shown}; expected one integer, within 32 bits{remedy}')


def _remedy_of(labels: np.ndarray, count: int, name: str = "labels") -> str:
    """How labels of another kind become integers, as the end of a message; "" where that is not known."""
    one = name == "label"
    if labels.dtype.kind in "US":
        numbered = "number the classes 0, 1, ..." if one else f"np.unique({name}, return_inverse=True)[1] numbers them"
        return f"; {numbered}"
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] == 1:
        return f"; {name}{'[0]' if one else '[:, 0]'} has that shape"
    if labels.ndim == 2 and len(labels) == count and labels.dtype.kind in "biuf":
        return f"; one-hot vectors are converted by {name}.argmax({'' if one else '1'})"
    if labels.shape == (count,) and labels.dtype == bool:
        return f"; False and True become 0 and 1 by {'int(label)' if one else f'{name}.astype(np.int32)'}"
    if labels.shape == (count,) and labels.dtype.kind == "f":
        if count and np.all(labels == np.round(labels)):
            return f"; whole numbers are converted by {'int(label)' if one else f'{name}.astype(np.int32)'}"
        return f"; {labels[0]} is not the number of a class"
    return ""


def check_labels(batch: Mapping[str, np.ndarray], num_classes: int | None) -> None:
    """Raise ValueError if a label of a batch is not a class of the network, which compiled code would not notice."""
    if num_classes is None:
        return
    wrong = batch["label"][(batch["label"] < 0) | (batch["label"] >= num_classes)]
    if wrong.size:
        raise ValueError(f"the data have the label {wrong[0]}; net.num_classes is {num_classes}")
