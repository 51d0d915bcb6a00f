"""Data: pixels come back exactly, order is a function of (seed, step), and errors say what to do."""

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import Digits, Folder, Npz, Tfds, images
from ddpm_jax.data.prepare import prepare
from ddpm_jax.data.source import Subset
from ddpm_jax.data.sources import InMemory, image_shape
from ddpm_jax.data.stream import batches, gather, sequential
from ddpm_jax.storage import pictures

SMALL, LARGE = np.zeros((2, 2, 1), np.uint8), np.zeros((3, 2, 1), np.uint8)


class Plain:
    """The least that a user's data set gives: image i is 2x3 pixels of value i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": np.full((2, 3, 1), index, np.uint8), "label": index}


@dataclass(frozen=True)
class Counted(InMemory):
    """The same in memory."""

    count: int = 10

    @cached_property
    def arrays(self):
        labels = np.arange(self.count, dtype=np.int32)
        return {
            "image": np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (self.count, 2, 3, 1)),
            "label": labels,
        }


def labels(iterator, count):
    return [batch["label"].tolist() for batch in islice(iterator, count)]


def same(a, b):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


@pytest.fixture
def random():
    return np.random.default_rng(0)


def pixels(random, *shape):
    return random.integers(0, 256, shape, np.uint8)


# Images


@pytest.mark.parametrize("convert", [lambda x: x, jnp.asarray], ids=["numpy", "jax"])
def test_every_pixel_value_comes_back(convert):
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = jax.jit(images.to_unit)(convert(every))
    assert x.dtype == jnp.float32
    assert float(x.min()) == -1
    assert float(x.max()) == 1
    same(np.asarray(jax.jit(images.to_pixels)(x)), every)
    same(np.asarray(images.to_pixels(np.asarray(x))), every)


def test_to_pixels_rounds_and_cuts():
    x = np.array([-3, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.004, 7], np.float32).reshape(1, 1, 5, 1)
    assert images.to_pixels(x).ravel().tolist() == [0, 0, 1, 255, 255]


def test_flip_mirrors_half_of_the_images(key, random):
    x = pixels(random, 2000, 2, 4, 1)
    flipped = np.asarray(jax.jit(images.random_flip)(key, x))
    mirrored = (flipped == x[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == x).all((1, 2, 3))
    assert (mirrored | kept).all()
    assert abs(mirrored.mean() - 0.5) < 0.05
    assert images.random_flip(key, images.to_unit(x)).dtype == jnp.float32


def test_grid_places_images_row_by_row(random):
    tiles = pixels(random, 5, 8, 6, 3)
    picture = pictures.grid(tiles, columns=2, scale=1)
    assert picture.shape == (3 * 10 + 2, 2 * 8 + 2, 3)
    same(picture[12:20, 2:8], tiles[2])
    assert (picture[22:30, 10:16] == pictures.LIGHT).all()
    assert pictures.grid(tiles).shape == (2 * 66 + 2, 3 * 50 + 2, 3)
    same(pictures.grid(tiles[:1], scale=3)[2:-2, 2:-2][::3, ::3], tiles[0])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_comes_back(tmp_path, random, channels, mode):
    picture = pixels(random, 5, 7, channels)
    pictures.save_png(tmp_path / "new" / "a.png", picture)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == mode
        same(np.asarray(image).reshape(picture.shape), picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_pictures_that_cannot_be(tmp_path, random):
    with pytest.raises(ValueError, match=r"\(5, 7, 2\).*1, 3 or 4 channels"):
        pictures.save_png(tmp_path / "a.png", pixels(random, 5, 7, 2))
    with pytest.raises(ValueError, match="columns is 0; expected at least 1"):
        pictures.grid(pixels(random, 2, 2, 2, 1), columns=0)


# Digits


def test_digits_are_those_of_scikit_learn():
    published = pytest.importorskip("sklearn.datasets").load_digits()
    expected = np.rint(published.images * 255 / 16).astype(np.uint8)
    train, test = Digits(), Digits("test")
    order = np.random.RandomState(0).permutation(1797)
    is_test = np.isin(order, np.concatenate([order[published.target[order] == c][:36] for c in range(10)]))
    for source, chosen in ((train, order[~is_test]), (test, order[is_test])):
        same(source.arrays["image"], expected[chosen][..., None])
        same(source.arrays["label"], published.target[chosen].astype(np.int32))
    assert (len(train), len(test)) == (1437, 360)
    assert np.bincount(test.arrays["label"]).tolist() == [36] * 10
    assert train[0]["label"].dtype == np.int32


def test_sources_are_values():
    """Fields only: what is read is no part of what is compared, printed or dumped."""
    source = Digits()
    assert image_shape(source) == (8, 8, 1)
    assert source == Digits()
    assert asdict(source) == {"split": "train"}
    assert repr(source) == "Digits(split='train')"
    Npz("missing.npz"), Folder("missing"), Tfds("missing")  # nothing is read yet


# Npz


@pytest.fixture
def npz(tmp_path, random):
    path = tmp_path / "a.npz"
    np.savez(
        path,
        images=pixels(random, 4, 5, 6, 3),
        grey=pixels(random, 4, 5, 6),
        labels=np.arange(4),
        few=np.arange(3),
        floats=np.zeros((4, 5, 6)),
        flat=pixels(random, 4, 5),
        first=pixels(random, 4, 3, 32, 32),
        names=np.array(["a", "b", "c", "d"]),
        objects=np.array([None] * 4),
    )
    (tmp_path / "text.npz").write_text("hello")
    return path


def test_npz(npz):
    source = Npz(str(npz), labels="labels")
    with np.load(npz) as stored:
        same(source[2]["image"], stored["images"][2])
        same(Npz(str(npz), images="grey")[3]["image"], stored["grey"][3][..., None])
    assert len(source) == 4
    assert source[2]["label"] == 2
    assert source[2]["label"].dtype == np.int32
    assert set(Npz(str(npz))[0]) == {"image"}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("b.npz", {}, "path is '.*b.npz'; there is no such file"),
        ("text.npz", {}, "path is '.*text.npz', which is not an .npz file; write one with numpy.savez"),
        ("a.npz", {"images": "x"}, "images is 'x'; .* holds few, first, flat, floats, grey, images, labels"),
        ("a.npz", {"images": "floats"}, r"images is 'floats'.*float64.*uint8.*np.round\(255"),
        ("a.npz", {"images": "flat"}, r"images is 'flat'.*shape \(4, 5\).*\(N, height, width\)"),
        ("a.npz", {"images": "first"}, r"images is 'first'.*\(4, 3, 32, 32\).*transpose\(0, 2, 3, 1\)"),
        ("a.npz", {"images": "objects"}, "images is 'objects'.*cannot be read"),
        ("a.npz", {"labels": "y"}, "labels is 'y'; .* holds few"),
        (
            "a.npz",
            {"labels": "few"},
            r"labels is 'few'.*int64 \[3\]; expected one integer for each image, shape \(4,\)",
        ),
        ("a.npz", {"labels": "names"}, "labels is 'names'.*expected one integer"),
    ],
)
def test_npz_errors(npz, name, fields, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Npz(str(npz.with_name(name)), **fields)[0]


# Folder


def save(path, array, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(array).save(path, **options)


def test_folder_reads_in_order_of_names(tmp_path, random):
    stored = {name: pixels(random, 5, 7, 3) for name in ("b/1.png", "a/2.png", "a/10.PNG")}
    for name, array in stored.items():
        save(tmp_path / name, array)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._2.png").write_text("left by another system")
    source = Folder(str(tmp_path), labels=True)
    assert [file.relative_to(tmp_path).as_posix() for file in source.files] == ["a/10.PNG", "a/2.png", "b/1.png"]
    same(source[1]["image"], stored["a/2.png"])
    assert source.class_names == ("a", "b")
    assert [int(source[i]["label"]) for i in range(3)] == [0, 0, 1]
    assert set(Folder(str(tmp_path))[0]) == {"image"}


def test_folder_fits(tmp_path):
    """A wide image whose left and right quarters are black, and white between."""
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 255
    save(tmp_path / "a.png", wide)

    def read(**fields):
        return Folder(str(tmp_path), **fields)[0]["image"]

    assert (read(size=4, resample="box") == 255).all()
    assert read(size=4).shape == (4, 4, 1)
    assert read(size=4, fit="stretch", resample="box")[..., 0].tolist() == [[0, 255, 255, 0]] * 4
    assert (read(size=8, fit="crop") == 255).all()
    assert read(size=4, channels=3).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"fit is 'crop' and size is 9, but .*a.png is 8x16 pixels; .*at most 8"):
        read(size=9, fit="crop")


def test_folder_formats(tmp_path, random):
    """Modes that Pillow stores otherwise: palette, black and white, transparency, EXIF orientation."""
    colour = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    Image.fromarray(colour).quantize(2).save(tmp_path / "palette.png")
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bits.png")
    save(tmp_path / "clear.png", np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8))
    grey_clear = np.array([[[9, 0], [9, 255]]], np.uint8)
    Image.merge("LA", [Image.fromarray(band) for band in (grey_clear[..., 0], grey_clear[..., 1])]).save(
        tmp_path / "grey_clear.png"
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    save(tmp_path / "turned.png", colour, exif=exif)
    folder = Folder(str(tmp_path))
    read = {file.name: folder.read(index) for index, file in enumerate(folder.files)}
    same(read["palette.png"], colour)
    assert read["bits.png"].tolist() == [[[0], [255]]]
    assert read["clear.png"].tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert read["grey_clear.png"].tolist() == [[[255], [9]]]
    same(read["turned.png"], colour.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("nowhere", {}, "path is '.*nowhere'; there is no such folder"),
        ("empty", {}, r"path is '.*empty', which holds no images; expected files .* .bmp .*\.jpg"),
        ("corrupt", {}, r"corrupt/a.png cannot be read as an image \(.*\); repair it or delete it"),
        ("deep", {}, "deep/a.tif cannot be read .*floats.*whose range is not known: convert it to 8 bits"),
        ("channels", {}, r"channels is None, but .*b.png has 3 and .*a.png has 1; channels=3 \(--data.channels 3\)"),
        ("sizes", {}, r"size is None, but .*b.png is 3x5 pixels and .*a.png is 3x4; size=64"),
        ("sizes", {"labels": True}, "labels is True, but .*a.png is in no sub-folder; move it"),
    ],
)
def test_folder_errors(tmp_path, random, name, fields, message):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "corrupt" / "a.png", pixels(random, 30, 40, 3))
    broken = (tmp_path / "corrupt" / "a.png").read_bytes()[:2000]
    (tmp_path / "corrupt" / "a.png").write_bytes(broken)
    save(tmp_path / "deep" / "a.tif", np.arange(12, dtype=np.float32).reshape(3, 4))
    save(tmp_path / "channels" / "a.png", pixels(random, 3, 4))
    save(tmp_path / "channels" / "b.png", pixels(random, 3, 4, 3))
    save(tmp_path / "sizes" / "a.png", pixels(random, 3, 4, 3))
    save(tmp_path / "sizes" / "b.png", pixels(random, 3, 5, 3))
    source = Folder(str(tmp_path / name), **fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        list(sequential(source, 2))
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        (Digits(), {"split": "valid"}, "split is 'valid'; expected one of 'train', 'test'"),
        (Folder("a"), {"size": 0}, "size is 0; expected at least 1"),
        (Folder("a"), {"fit": "pad"}, "fit is 'pad'; expected one of 'cover', 'stretch', 'crop'"),
        (Folder("a"), {"resample": "sinc"}, "resample is 'sinc'; expected one of 'lanczos'"),
        (Folder("a"), {"channels": 2}, "channels is 2; expected 1, 3 or None"),
        (Tfds("a"), {"name": "my images"}, "name is 'my images'; expected NAME"),
    ],
)
def test_fields_are_checked(source, fields, message):
    """By the sources themselves, as outside of these tests the annotations are not enforced."""
    for field, value in fields.items():
        object.__setattr__(source, field, value)
    with pytest.raises(ValueError, match=message):
        source.__post_init__()


# Tfds and prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a data set `digits` with the splits train and test."""
    root = tmp_path_factory.mktemp("tfds")
    folder = prepare("digits", {"train": Digits(), "test": Digits("test")}, str(root), progress=False)
    assert folder == root / "digits" / "1.0.0"
    return root


def test_prepared_data_come_back_in_order(prepared):
    for split in ("train", "test"):
        read = list(sequential(Tfds("digits", split, str(prepared), label_key="label"), 500))
        for name, array in Digits(split).arrays.items():
            same(np.concatenate([batch[name] for batch in read]), array)


def test_splits_can_be_cut_and_joined(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(Tfds("digits", "train[:10%]")) == 144
    assert len(Tfds("digits:1.0.0", "train+test")) == 1797
    part = Tfds("digits", "train[10:20]")
    same(part[3]["image"], Digits()[13]["image"])
    same(part[-1]["image"], Digits()[19]["image"])
    with pytest.raises(IndexError):
        part[10]
    assert set(part[0]) == {"image"}


@pytest.mark.parametrize("channels", [3, 4])
def test_prepared_colours_come_back(tmp_path, random, channels):
    np.savez(tmp_path / "a.npz", images=pixels(random, 3, 4, 5, channels))
    source = Npz(str(tmp_path / "a.npz"))
    prepare("colours", {"train": source}, str(tmp_path), progress=False)
    same(gather(Tfds("colours", data_dir=str(tmp_path)), np.arange(3))["image"], source.arrays["image"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "cifar10"},
            "name is 'cifar10': .* `ddpm-jax prepare`.*`tfds build cifar10 --file_format=array_record",
        ),
        ({"name": "digits:2.0.0"}, "name is 'digits:2.0.0'; the versions prepared in .* are 1.0.0"),
        ({"name": "records"}, "name is 'records': .* is stored as tfrecord.*--file_format=array_record"),
        (
            {"name": "configured"},
            "'configured'; expected one of its configurations: configured/a, configured/b",
        ),
        ({"name": "broken"}, "broken/1.0.0 is not a readable data set .*prepare it again"),
        ({"split": "valid"}, r"split is 'valid', .*expected test \(360 examples\), train \(1437 examples\)"),
        ({"split": "train[:oops]"}, r"split is 'train\[:oops\]', .*train \(1437 examples\)"),
        ({"split": "train[:0]"}, r"split is 'train\[:0\]', .*train \(1437 examples\)"),
        ({"image_key": "photo"}, "image_key is 'photo'; the features of digits are image, label"),
        ({"image_key": "label"}, "image_key is 'label', which is Scalar int32.*expected uint8"),
        ({"label_key": "class"}, "label_key is 'class'; the features of digits are image, label"),
        ({"label_key": "image"}, "label_key is 'image', which is Image uint8.*expected an integer"),
    ],
)
def test_tfds_errors(prepared, fields, message):
    info = json.loads((prepared / "digits" / "1.0.0" / "dataset_info.json").read_text())
    features = (prepared / "digits" / "1.0.0" / "features.json").read_text()
    stored = json.dumps({**info, "name": "records", "fileFormat": "tfrecord"})
    for folder, text in (("records", stored), ("configured/a", "{}"), ("configured/b", "{}"), ("broken", "oops")):
        (prepared / folder / "1.0.0").mkdir(parents=True, exist_ok=True)
        (prepared / folder / "1.0.0" / "dataset_info.json").write_text(text)
        (prepared / folder / "1.0.0" / "features.json").write_text(features)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        image_shape(Tfds(**{"name": "digits", "data_dir": str(prepared), **fields}))


def test_prepare_replaces_only_when_told(tmp_path):
    def write(source, **options):
        return prepare("mine", {"train": source}, str(tmp_path), progress=False, **options)

    write(Plain(3))
    with pytest.raises(ValueError, match=r"name is 'mine'; .* exists already: .*overwrite=True"):
        write(Plain(4))
    write(Plain(4), overwrite=True)
    assert len(Tfds("mine", data_dir=str(tmp_path))) == 4
    with pytest.raises(ValueError, match="from source 300"):
        write(Failing(), overwrite=True)
    assert len(Tfds("mine", data_dir=str(tmp_path))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "mine" / "3.0.1").mkdir()
    with pytest.raises(ValueError, match=r"holds 3.0.1 already: choose another name"):
        write(Plain(4), overwrite=True)


class Failing(Plain):
    """Fails in the middle."""

    def __init__(self):
        super().__init__(1000)

    def __getitem__(self, index):
        if index == 300:
            raise ValueError("from source 300")
        return {"image": np.zeros((2, 3, 1), np.uint8)}


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("MyImages", {"train": Plain(2)}, "name is 'MyImages'; expected lower-case words"),
        ("mine", {}, "splits is empty; expected at least one"),
        ("mine", {"all": Plain(2)}, "split 'all' has an unsuitable name"),
        (
            "mine",
            {"train": Plain(2), "test": Digits()},
            r"splits differ: train \(2, 3, 1\) with labels; test \(8, 8, 1\)",
        ),
        (
            "mine",
            {"train": [{"image": SMALL}] * 256 + [{"image": LARGE}]},
            r"images from number 256 on have shape \(3, 2, 1\)",
        ),
        ("mine", {"train": [{"image": np.zeros((2, 2, 2), np.uint8)}]}, r"shape \(2, 2, 2\); a PNG has 1, 3 or 4"),
    ],
)
def test_prepare_errors(tmp_path, name, splits, message):
    with pytest.raises(ValueError, match=message):
        prepare(name, splits, str(tmp_path), progress=False)
    assert not list(tmp_path.iterdir())


# Batches


@pytest.mark.parametrize("source", [Plain(10), Counted(10)], ids=["plain", "memory"])
@pytest.mark.parametrize("threads", [0, 1, 3, None])
def test_each_epoch_is_a_new_permutation(source, threads):
    seen = np.concatenate(labels(batches(source, 4, seed=0, threads=threads), 10)).reshape(4, 10)
    assert (np.sort(seen, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in seen}) == 4


def test_examples_are_whole():
    batch = next(batches(Plain(10), 4, seed=3))
    assert batch["image"].shape == (4, 2, 3, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert (batch["image"] == batch["label"][:, None, None, None]).all()


def test_order_is_a_function_of_seed_and_step():
    expected = labels(batches(Counted(10), 3, seed=1), 30)
    assert labels(batches(Plain(10), 3, seed=1, threads=4, prefetch=8), 30) == expected
    for start in (0, 1, 7, 29):
        assert labels(batches(Counted(10), 3, seed=1, start_step=start), 30 - start) == expected[start:]
    assert labels(batches(Counted(10), 3, seed=2), 30) != expected
    far = next(batches(Counted(10), 3, seed=1, start_step=10**12))
    assert far["label"].shape == (3,)


def test_order_stays_the_same_in_every_version():
    assert labels(batches(Counted(10), 5, seed=0), 2) == [[6, 1, 0, 5, 3], [8, 7, 9, 2, 4]]


def test_seeds_share_no_epochs():
    epochs = [tuple(epoch) for seed in range(4) for epoch in labels(batches(Counted(10), 10, seed=seed), 4)]
    assert len(set(epochs)) == 16


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 5], [2, 4]]])
def test_processes_share_the_global_batches(shares):
    """Whichever rows are whose."""
    whole = np.array(labels(batches(Counted(10), 6, seed=5, start_step=2), 8))
    for share in shares:
        rows = np.array(share)
        part = labels(batches(Counted(10), 6, seed=5, start_step=2, rows=rows), 8)
        np.testing.assert_array_equal(part, whole[:, rows])
        part = labels(sequential(Counted(10), 6, fill=True, rows=rows), 2)
        np.testing.assert_array_equal(part, np.minimum(np.arange(12), 9).reshape(2, 6)[:, rows])


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_may_be_larger_than_the_data(count):
    batch = next(batches(Plain(count), 7, seed=0))
    assert np.bincount(batch["label"], minlength=count).max() <= -(-7 // count)


def test_sequential_is_one_pass():
    for source in (Plain(10), Counted(10)):
        assert labels(sequential(source, 4), 99) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_part_of_a_source_is_read_as_the_source_is(tmp_path):
    source = Subset(Counted(10), range(4, 10))
    assert labels(sequential(source, 4), 9) == [[4, 5, 6, 7], [8, 9]]
    assert source[1]["label"] == 5
    with pytest.raises(IndexError):
        source[6]
    save(tmp_path / "a.png", np.zeros((8, 2, 3), np.uint8))  # the axes of a file need no check
    save(tmp_path / "b.png", np.zeros((8, 2, 3), np.uint8))
    assert image_shape(Subset(Folder(str(tmp_path)), [1])) == (8, 2, 3)
    with pytest.raises(ValueError, match="another order of the axes"):
        image_shape(Subset([{"image": np.zeros((1, 8, 8), np.uint8)}], [0]))


def test_a_batch_may_come_as_a_list():
    class Listed(Plain):
        def __getitems__(self, indices):
            return [self[int(index)] for index in indices]

    assert labels(sequential(Listed(3), 2), 9) == [[0, 1], [2]]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_errors_of_threads_reach_the_caller(threads):
    with pytest.raises(ValueError, match=r"^from source 300$"):
        list(sequential(Failing(), 128, threads=threads))


def test_threads_end_with_the_iterator():
    before = set(threading.enumerate())
    iterator = batches(Plain(10), 4, seed=0, threads=4)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    del iterator
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


def test_an_iterator_that_lives_until_python_exits_is_silent():
    program = "from ddpm_jax.data import Digits, stream\nbatches = stream.batches(Digits(), 8, 0)\nnext(batches)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("prefetch", [0, 2, 5])
def test_at_most_prefetch_batches_are_read_ahead(prefetch):
    read = []

    class Noting(Plain):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    iterator = sequential(Noting(100), 1, threads=3, prefetch=prefetch)
    for taken in range(1, 4):
        next(iterator)
        time.sleep(0.1)
        assert len(read) == 1 + taken + prefetch  # the shape is that of example 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "is empty; expected at least 1 example"),
        ([SMALL], r"source\[0\] is ndarray; expected a dictionary"),
        ([{"photo": SMALL}], r"source\[0\] is \['photo'\]; expected a dictionary"),
        ([{"image": SMALL / 2}], r'source\[0\]\["image"\] is float64 \[2, 2, 1\]; expected uint8'),
        (
            [{"image": SMALL[0]}],
            r'source\[0\]\["image"\] is uint8 \[2, 1\]; expected uint8 \[height, width, channels\]',
        ),
        ([{"image": SMALL}, {"image": SMALL[0]}], r'source\[1\]\["image"\] is uint8 \[2, 1\]'),
        ([{"image": SMALL}, {"image": LARGE}], r"source\[0\] .*\(2, 2, 1\) and source\[1\] of \(3, 2, 1\); .*resize"),
        ([{"image": SMALL}, {"image": SMALL, "label": 1}], r"source\[0\] has \['image'\] and source\[1\] has"),
    ],
)
def test_sources_that_break_the_contract(source, message):
    with pytest.raises(ValueError, match=message):
        list(sequential(source, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, at least 1"),
        ({"batch_size": True}, "batch_size is True; expected a whole number, at least 1"),
        ({"batch_size": 4, "rows": np.array([1, 4])}, r"rows are \[1 4\]; expected one or more of 0\.\.3"),
        ({"batch_size": 4, "rows": np.array([], int)}, r"rows are \[\]; expected one or more of 0\.\.3"),
        ({"batch_size": 4, "seed": -1}, "seed is -1; expected a whole number, at least 0"),
        ({"batch_size": 4, "start_step": -1}, "start_step is -1; expected a whole number, at least 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(Plain(10), **{"seed": 0, **arguments})


def test_imports_are_lazy_and_tensorflow_is_never_imported(prepared):
    """Sources import nothing heavy; reading a prepared data set and streaming it imports no TensorFlow."""
    program = f"""
import sys
from ddpm_jax.data import Digits, Tfds
heavy = {{"tensorflow_datasets", "PIL", "sklearn"}}
assert not heavy & set(sys.modules)
from ddpm_jax.data.prepare import prepare
from ddpm_jax.data.stream import batches
assert not heavy & set(sys.modules)
next(batches(Tfds("digits", data_dir={str(prepared)!r}, label_key="label"), 8, seed=0))
prepare("other", {{"test": Digits("test")}}, {str(prepared)!r})
assert "tensorflow" not in sys.modules and "grain" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert not re.search("tensorflow|opencv", ran.stderr, re.IGNORECASE), ran.stderr
