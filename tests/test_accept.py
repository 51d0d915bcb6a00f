"""What is an image, what is a label: the others are refused, with the call that converts them."""

import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import Arrays, Npz
from ddpm_jax.data.accept import as_array, as_label, check_axes, checked_images, checked_labels, described_images
from ddpm_jax.data.sources import image_shape
from ddpm_jax.data.stream import batches, gather


@dataclass(frozen=True)
class Own:
    """A source of a user's own."""

    images: Any
    labels: Any = None
    stacked: bool = False

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        label = {} if self.labels is None else {"label": self.labels[index]}
        return {"image": self.images[index], **label}


class Stacked(Own):
    """One that gives whole batches."""

    def __getitems__(self, indices):
        label = {} if self.labels is None else {"label": np.asarray(self.labels)[indices]}
        return {"image": np.asarray(self.images)[indices], **label}


def zeros(*shape):
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("count", "shape", "words"),
    [
        (64, (256, 2, 1), "64 grey images of 256x2"),
        (1, (8, 9, 3), "1 RGB image of 8x9"),
        (5000, (8, 9, 4), "5,000 RGBA images of 8x9"),
        (2, (8, 9, 7), "2 images with 7 channels of 8x9"),
    ],
)
def test_images_are_described(count, shape, words):
    assert described_images(count, shape) == words


AMBIGUOUS = [
    (64, 256, 2),
    (64, 2, 256),
    (32, 48, 3),
    (3, 32, 48),
    (3, 32, 32),
    (5, 9, 1),
    (10, 3, 4, 4),
    (10, 1, 28, 28),
]
AMBIGUOUS += [(10, 3, 8, 4), (10, 2, 4, 4), (10, 1, 3, 3), (10, 64, 16, 16), (32, 32, 3, 100), (28, 28, 1, 100)]
AMBIGUOUS += [(28, 28, 10), (8, 8, 100)]


def calls_in(message: str) -> list[str]:
    """The expressions of `images` or `image` that a message gives."""
    return re.findall(r"images?(?:\[[^\]]*\]|\.\w+\([^()]*\))+", message)


@pytest.mark.parametrize("shape", AMBIGUOUS, ids=str)
def test_an_ambiguous_shape_is_refused_and_each_remedy_is_accepted(shape, tmp_path):
    images = zeros(*shape)
    with pytest.raises(ValueError, match=re.escape(str(shape))) as refused:
        Arrays.of(images)
    remedies = calls_in(str(refused.value))
    assert remedies
    for remedy in remedies:
        made = eval(remedy, {"images": images, "np": np})
        assert made.size == images.size
        image_shape(Arrays.of(made))
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(ValueError, match="images is 'images'"):
        image_shape(Npz(str(tmp_path / "a.npz")))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 28, 28), (3, 8, 4), (32, 3, 100)], ids=str)
def test_an_own_source_with_channels_first_is_refused(shape):
    image = zeros(*shape)
    for use in (image_shape, lambda source: next(batches(source, 1, 0))):
        with pytest.raises(ValueError, match=re.escape(f'source[0]["image"] has shape {shape}')) as refused:
            use(Own([image] * 4))
    for remedy in calls_in(str(refused.value)):
        image_shape(Own([eval(remedy, {"image": image})] * 4))


@pytest.mark.parametrize(
    "shape",
    [
        (8, 8, 8),
        (9, 4, 4),
        (3, 2, 2),
        (64, 256, 2, 1),
        (5, 4, 4, 4),
        (5, 3, 3, 3),
        (5, 2, 3, 1),
        (5, 1, 28, 1),
        (5, 3, 4, 3),
        (5, 32, 32, 8),
    ],
    ids=str,
)
def test_a_plain_shape_is_accepted(shape):
    assert image_shape(Arrays.of(zeros(*shape))) == (*shape[1:], 1)[:3]


@pytest.mark.parametrize("shape", [(5,), (5, 784), (0, 8, 8), (5, 0, 8), (5, 8, 8, 0), (2, 5, 8, 8, 3)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(N, height, width\)|channels"):
        Arrays.of(zeros(*shape))


def test_flat_images_are_told_their_sides():
    with pytest.raises(ValueError, match=r"images.reshape\(-1, 28, 28\)"):
        Arrays.of(zeros(5, 784))


WHOLE = np.arange(2 * 8 * 9).reshape(2, 8, 9)


@pytest.mark.parametrize(
    "images",
    [
        WHOLE.astype(np.int32),
        WHOLE.astype(np.int64),
        WHOLE.astype(np.float32),
        WHOLE / 143,
        WHOLE / 71.5 - 1,
        (WHOLE * 400).astype(np.uint16),
        WHOLE % 2 == 0,
    ],
    ids=["int32", "int64", "float 0..255", "float 0..1", "float -1..1", "uint16", "bool"],
)
def test_pixels_of_another_dtype_are_told_what_converts_them(images):
    """The call that the message names gives images that span what the pixels spanned, in their order."""
    with pytest.raises(ValueError, match=f"dtype {images.dtype}") as refused:
        Arrays.of(images)
    call = str(refused.value).split(" by ")[1]
    made = Arrays.of(eval(call, {"images": images, "np": np})).arrays["image"][..., 0]
    assert (np.diff(made.ravel()[np.argsort(images.ravel(), kind="stable")].astype(int)) >= 0).all()
    assert made.min() == 0
    assert made.max() == (143 if images.max() == 143 else 223 if images.dtype == np.uint16 else 255)


def test_values_that_no_conversion_fits_are_shown():
    for images, message in (
        (WHOLE - 5, "values are -5 to 138: scale them"),
        (WHOLE * np.nan, "not finite"),
        (WHOLE.astype(complex), "Convert them"),
        (WHOLE.astype(str), "Convert them"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_images(images, "images")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None], r"labels\[2\] is None"),
        ([0, "cat", None], r"labels\[1\] is 'cat'"),
        ([0, 2**70, 1], r"labels\[1\] is 1180591620717411303424, .* within 32 bits"),
        ({"label": [0, 1, 2]}, r"labels is a dict with \['label'\]; expected one array"),
    ],
)
def test_values_that_are_no_numbers_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        Arrays.of(zeros(3, 8, 8, 1), labels)


def test_ragged_lists_are_named():
    with pytest.raises(ValueError, match=r"images\[0\] is \(8, 8\) and images\[2\] is \(8, 4\)"):
        Arrays.of([zeros(8, 8), zeros(8, 8), zeros(8, 4)])
    with pytest.raises(ValueError, match=r"labels\[1\] is \(2,\)"):
        Arrays.of(zeros(2, 8, 8), [[1], [1, 2]])
    with pytest.raises(ValueError, match="Python object"):
        as_array([None, None], "images")
    assert as_array([zeros(2, 2), zeros(2, 2)], "images").shape == (2, 2, 2)


BAD = {
    "beyond 32 bits": (np.array([0, 2**32 + 1]), r"(labels|label).* 4294967297 .*32 bits|4294967297.*32 bits"),
    "below 32 bits": (np.array([0, -(2**40)]), "1099511627776"),
    "unsigned": (np.array([0, 2**63], np.uint64), "9223372036854775808"),
    "floats": (np.array([0.7, 1.7]), "0.7|1.7"),
    "whole floats": (np.array([0.0, 1.0]), r"np.int32\(labels?\)"),
    "names": (np.array(["cat", "dog"]), "np.unique"),
    "bytes": (np.array([b"cat", b"dog"]), "np.unique"),
    "one-hot": (np.eye(2), r"np.argmax\(labels?, -1\)"),
    "one-hot integers": (np.eye(2, dtype=int), r"np.argmax\(labels?, -1\)"),
    "column": (np.array([[0], [1]]), r"np.squeeze\(labels?, -1\)"),
    "bool": (np.array([False, True]), r"np.int32\(labels?\)"),
    "nan": (np.array([np.nan, 0.0]), "nan"),
}


@pytest.mark.parametrize(("labels", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("make", [lambda labels: Arrays.of(zeros(2, 8, 8), labels), None], ids=["Arrays", "own"])
def test_labels_of_another_kind_are_refused(labels, message, make):
    make = make or (lambda labels: gather(Own(zeros(2, 8, 8, 1), list(labels)), np.arange(2)))
    with pytest.raises(ValueError, match=message) as refused:
        make(labels)
    assert "label" in str(refused.value)
    assert "integer" in str(refused.value) or "32 bits" in str(refused.value)
    with pytest.raises(ValueError, match="label"):
        gather(Stacked(zeros(2, 8, 8, 1), labels), np.arange(2))


@pytest.mark.parametrize("label", ["cat", None, [1, 2], 2**70, {"a": 1}], ids=str)
def test_labels_that_are_no_arrays_are_refused(label):
    with pytest.raises(ValueError, match=r'source\[3\]\["label"\] is .*; expected one integer'):
        as_label(label, 3)


def test_integers_of_every_kind_are_labels():
    for label in (3, np.int64(3), np.uint8(3), np.array(3), jnp.asarray(3)):
        assert as_label(label, 0) == 3
        assert as_label(label, 0).dtype == np.int32
    ends = np.array([-(2**31), 2**31 - 1])
    np.testing.assert_array_equal(checked_labels(ends, 2, "labels"), ends)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        checked_labels(ends, 3, "labels")


def test_stacked_images_are_checked():
    with pytest.raises(ValueError, match=r'"image" as float64 \[2, 8, 8, 1\].*expected uint8 \[2, height'):
        gather(Stacked(np.zeros((2, 8, 8, 1))), np.arange(2))


def test_every_refused_order_of_axes_has_a_remedy():
    """Whatever is refused is accepted once it is moved as the message says."""
    for shape in np.ndindex(6, 6, 6):
        shape = tuple(length + 1 for length in shape)
        try:
            check_axes(shape, str(shape), "image")
            remedies = None
        except ValueError as error:
            remedies = calls_in(str(error))
        assert remedies != []
        for remedy in remedies or []:
            moved = eval(remedy, {"image": zeros(*shape)}).shape
            check_axes(moved, str(moved), "image")
