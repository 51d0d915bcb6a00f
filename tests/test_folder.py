"""Folders as people have them: links, folders called like images, classes too deep or empty, files of every mode."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from ddpm_jax.data import Folder, Npz
from ddpm_jax.data.sources import image_shape
from ddpm_jax.storage import specs


def picture(path, seed=0):
    """A random grey image of 8x8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(path)


def names(folder, **fields):
    return [file.relative_to(folder).as_posix() for file in Folder(str(folder), **fields).files]


def test_links_to_folders_are_followed(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png"), picture(tmp_path / "elsewhere" / "deep" / "2.png")
    picture(tmp_path / "data" / "own.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "elsewhere" / "1.png", tmp_path / "data" / "file.png")
    assert names(tmp_path / "data") == ["file.png", "linked/1.png", "linked/deep/2.png", "own.png"]
    os.symlink(tmp_path / "data", tmp_path / "other")
    assert len(Folder(str(tmp_path / "other"))) == 4


def test_class_folders_may_be_links_even_to_one_folder(tmp_path):
    picture(tmp_path / "a" / "1.png"), picture(tmp_path / "b" / "1.png")
    (tmp_path / "data").mkdir()
    for name, target in (("cat", "a"), ("dog", "b"), ("pet", "a")):
        os.symlink(tmp_path / target, tmp_path / "data" / name)
    source = Folder(str(tmp_path / "data"), labels=True)
    assert source.class_names == ("cat", "dog", "pet")
    assert [int(source[i]["label"]) for i in range(len(source))] == [0, 1, 2]


def test_a_folder_is_read_through_as_few_links_as_possible(tmp_path):
    picture(tmp_path / "x" / "1.png"), picture(tmp_path / "y" / "2.png")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "y", tmp_path / "x" / "link")
    os.symlink(tmp_path / "x", tmp_path / "data" / "a"), os.symlink(tmp_path / "y", tmp_path / "data" / "b")
    assert names(tmp_path / "data") == ["a/1.png", "b/2.png"]


@pytest.mark.parametrize("labels", [False, True])
def test_loops_of_links_end(tmp_path, labels):
    for name in ("a", "b"):
        picture(tmp_path / "data" / name / "1.png")
        os.symlink(tmp_path / "data", tmp_path / "data" / name / "root")
        os.symlink(tmp_path, tmp_path / "data" / name / "above")
        os.symlink(tmp_path / "data" / name, tmp_path / "data" / name / "itself")
    assert names(tmp_path / "data", labels=labels) == ["a/1.png", "b/1.png"]
    os.symlink(tmp_path / "data" / "b", tmp_path / "data" / "a" / "z")
    os.symlink(tmp_path / "data" / "a", tmp_path / "data" / "b" / "z")
    with_others = ["a/1.png", "a/z/1.png", "b/1.png", "b/z/1.png"]  # a class holds what it links to
    assert names(tmp_path / "data", labels=labels) == (with_others if labels else ["a/1.png", "b/1.png"])


@pytest.mark.parametrize("labels", [False, True])
def test_a_link_to_itself_is_a_link_to_nothing(tmp_path, labels):
    picture(tmp_path / "a" / "1.png")
    os.symlink("round", tmp_path / "round"), os.symlink("2.png", tmp_path / "a" / "2.png")
    source = Folder(str(tmp_path), labels=labels)
    assert len(source) == 2
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image"):
        source[1]


@pytest.mark.usefixtures("unchecked")
def test_fields_of_a_folder_are_converted_or_refused(tmp_path):
    picture(tmp_path / "1.png")
    source = Folder(tmp_path, size=np.int64(4), channels=np.int8(3), labels=np.False_)
    assert source == Folder(str(tmp_path), size=4, channels=3)
    assert specs.encode(source)["path"] == str(tmp_path)
    assert source[0]["image"].shape == (4, 4, 3)
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8), np.uint8))
    assert specs.encode(Npz(tmp_path / "x.npz"))["path"] == str(tmp_path / "x.npz")
    for size in ((4, 4), 4.0, "4", 0):
        with pytest.raises(ValueError, match=r"size is .*at least 1 pixel"):
            Folder(str(tmp_path), size=size)
    with pytest.raises(ValueError, match="labels is 'yes'; expected True or False"):
        Folder(str(tmp_path), labels="yes")


def test_a_link_to_nothing_is_named(tmp_path):
    picture(tmp_path / "a.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png cannot be read as an image \(.*No such file"):
        Folder(str(tmp_path))[1]


@pytest.mark.parametrize("ending", ["jpg", "rgb", "im", "bw", "ras", "png"])
def test_a_folder_called_like_an_image_is_a_folder(tmp_path, ending):
    picture(tmp_path / f"photos.{ending}" / "1.png"), picture(tmp_path / "2.png")
    source = Folder(str(tmp_path))
    assert [source[i]["image"].shape for i in range(len(source))] == [(8, 8, 1)] * 2
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / f"pipe.{ending}")  # reading it would wait for ever
        assert len(Folder(str(tmp_path))) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/cat/1.png", "train/dog/1.png"), r"would be train, .*holds the folders cat, dog.*path is '.*train'"),
        (("train/cat/1.png", "test/cat/1.png"), r"would be test, train, .* test holds the folders cat"),
        (("all/train/cat/1.png", "all/train/dog/1.png"), r"would be all, .*holds the folders train"),
    ],
)
def test_classes_that_are_too_deep_are_refused(tmp_path, files, message):
    for file in files:
        picture(tmp_path / file)
    with pytest.raises(ValueError, match=message):
        len(Folder(str(tmp_path), labels=True).class_names)
    with pytest.raises(ValueError, match=message):
        image_shape(Folder(str(tmp_path), labels=True))
    assert image_shape(Folder(str(tmp_path))) == (8, 8, 1)


def test_classes_may_have_folders_of_their_own(tmp_path):
    for file in ("cat/2020/1.png", "dog/2020/1.png", "dog/2.png"):
        picture(tmp_path / file)
    assert Folder(str(tmp_path), labels=True).class_names == ("cat", "dog")
    picture(tmp_path / "one" / "only" / "1.png"), picture(tmp_path / "one" / "only" / "deep" / "1.png")
    assert Folder(str(tmp_path / "one"), labels=True).class_names == ("only",)


def test_an_empty_class_folder_keeps_its_number(tmp_path):
    picture(tmp_path / "a" / "1.png"), picture(tmp_path / "c" / "1.png")
    for name in ("b", ".hidden", "__MACOSX"):
        (tmp_path / name).mkdir()
    source = Folder(str(tmp_path), labels=True)
    with pytest.warns(UserWarning, match="class folders without images: b. They keep their numbers, so there are 3"):
        assert source.class_names == ("a", "b", "c")
    assert [int(source[i]["label"]) for i in range(2)] == [0, 2]


# Modes

SIXTEEN = np.array([[0, 128, 129, 257, 514, 65534, 65535, 32768]], np.uint16)
SCALED = [[0, 0, 1, 1, 2, 255, 255, 128]]  # round(value / 257)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_images_of_16_bits_are_converted_and_that_is_said_once(tmp_path, ending):
    for name in "ab":
        Image.fromarray(SIXTEEN).save(tmp_path / f"{name}.{ending}")
    source = Folder(str(tmp_path))
    with pytest.warns(UserWarning, match=r"16 bits.*round\(value / 257\)") as said:
        read = [source[i]["image"][..., 0].tolist() for i in range(2)]
    assert read == [SCALED, SCALED]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Folder(str(tmp_path), channels=3)[0]["image"].tolist() == [[[v] * 3 for v in SCALED[0]]]


def test_16_bits_in_the_other_byte_order(tmp_path):
    Image.frombytes("I;16B", SIXTEEN.shape[::-1], SIXTEEN.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="16 bits"):
        assert Folder(str(tmp_path))[0]["image"][..., 0].tolist() == SCALED


RED = Image.new("RGB", (4, 4), (250, 10, 20))
MODES = {
    "1.png": (Image.new("1", (4, 4), 1), [255]),
    "L.png": (Image.new("L", (4, 4), 7), [7]),
    "LA.png": (Image.new("LA", (4, 4), (7, 0)), [255]),
    "P.gif": (RED.quantize(4), [250, 10, 20]),
    "PA.png": (Image.new("RGBA", (4, 4), (9, 9, 9, 0)).quantize(4), [255, 255, 255]),
    "RGB.bmp": (RED, [250, 10, 20]),
    "RGBA.png": (Image.new("RGBA", (4, 4), (250, 10, 20, 0)), [255, 255, 255]),
    "CMYK.tif": (RED.convert("CMYK"), [250, 10, 20]),
    "CMYK.jpg": (RED.convert("CMYK"), [250, 10, 20]),
    "YCbCr.jpg": (RED.convert("YCbCr"), [250, 10, 20]),
    "LAB.tif": (
        ImageCms.profileToProfile(RED, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"),
        [250, 10, 20],
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_read(tmp_path, name):
    image, expected = MODES[name]
    image.save(tmp_path / name, **({"quality": 100} if name.endswith("jpg") else {}))
    for channels in (None, 1, 3):
        read = Folder(str(tmp_path), channels=channels)[0]["image"]
        assert read.dtype == np.uint8
        assert read.shape == (4, 4, channels or len(expected))
    if len(expected) == 3:
        assert np.abs(Folder(str(tmp_path))[0]["image"].astype(int) - expected).max() <= 5


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_whose_range_is_unknown_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="range is not known: convert it to 8 bits"):
        Folder(str(tmp_path))[0]


# .npz files that are not whole


@pytest.mark.parametrize("damage", ["cut", "half", "empty", "flipped", "text", "npy"])
def test_an_npz_that_is_not_whole_is_refused(tmp_path, damage):
    path = tmp_path / "x.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, np.zeros((3, 8, 8), np.uint8))
    contents = {"cut": whole[:600], "half": whole[:-5], "empty": b"", "flipped": flipped, "text": b"hello"}
    path.write_bytes(contents.get(damage, (tmp_path / "a.npy").read_bytes()))
    messages = {"text": "is not an .npz file", "npy": "holds one array, an .npy file"}
    with pytest.raises(ValueError, match=messages.get(damage, "is damaged or not complete; write or fetch it again")):
        Npz(str(path))[0]
