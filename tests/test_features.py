"""Extractors: Inception-v3 is torch-fidelity's, files of torch are read without it, and only what is whole is kept."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import sys
import threading
import zipfile
from pathlib import Path

import inception_reference as script
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import train_features as training
from helpers import mesh_of
from safetensors.numpy import save_file

from ddpm_jax.data import Arrays, Digits, Npz
from ddpm_jax.data.stream import gather
from ddpm_jax.errors import RunError
from ddpm_jax.features import classifier as classifiers
from ddpm_jax.features import download, inception
from ddpm_jax.features.classifier import (
    Classifier,
    accuracy,
    held_out,
    labelled,
    load_classifier,
    save_classifier,
    train_classifier,
)
from ddpm_jax.features.download import WeightsFile, fetch
from ddpm_jax.features.extractor import Extracted, Extractor, extract, of_function
from ddpm_jax.features.read import read_extractor
from ddpm_jax.nets.classifier import ConvClassifier
from ddpm_jax.storage import specs
from ddpm_jax.storage.torch_weights import read_weights

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def stored():
    """What torch-fidelity computes, and how it was made: tests/reference/inception_reference.py."""
    with np.load(REFERENCE / "inception.npz") as file:
        return dict(file)


# Inception


@pytest.mark.parametrize("shape", script.RESIZED, ids=script.called)
def test_the_resize_is_that_of_tensorflow_1(shape, stored):
    name = f"resize {script.called(shape)}"
    np.testing.assert_allclose(script.kept(name, script.our_resize(shape)), stored[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", script.BLOCKS)
def test_each_kind_of_block_is_torch_fidelitys(name, stored):
    ours = script.kept(f"block {name}", script.our_block(name))
    np.testing.assert_allclose(ours, stored[f"block {name}"], rtol=0, atol=1e-4)


def test_the_weights_have_the_published_names_and_shapes(stored):
    theirs = {name: tuple(shape) for name, shape in json.loads(stored["names"].tobytes()).items()}
    counters = {name for name in theirs if name.endswith("num_batches_tracked")}
    assert inception.torch_shapes() == {name: theirs[name] for name in theirs.keys() - counters}


def folded_shapes():
    """Shapes of our weights, without the numbers."""
    shapes = {}
    for name, shape in inception.torch_shapes().items():
        if name.endswith("conv.weight"):
            unit = name.removesuffix(".conv.weight")
            shapes[f"{unit}.kernel"], shapes[f"{unit}.bias"] = (*shape[2:], *shape[1::-1]), shape[:1]
    shapes |= {"fc.kernel": (inception.FEATURES, inception.CLASSES), "fc.bias": (inception.CLASSES,)}
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 40, 30, 3)])
def test_images_of_any_size_have_2048_features(shape):
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    found = jax.eval_shape(inception.activations, folded_shapes(), images)
    widths = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": 1008}
    assert {name: array.shape for name, array in found.items()} == {name: (2, n) for name, n in widths.items()}
    assert {array.dtype for array in found.values()} == {jnp.dtype(np.float32)}


def test_every_product_is_full_float32():
    """By default GPUs and TPUs round the factors."""
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)
    text = jax.jit(inception.activations).lower(folded_shapes(), images).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line or "dot_general" in line]
    assert len(products) == 95
    assert all(line.count("HIGHEST") == 2 for line in products)


@pytest.mark.slow
def test_the_whole_network_is_torch_fidelitys(stored, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(script.state_of(inception.torch_shapes()), path)
    extractor = read_extractor(f"inception:{path}")
    assert extractor.name == "inception-v3, other weights"
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    apply = jax.jit(inception.activations)
    for shape in script.IMAGES:
        ours = script.our_network(functools.partial(apply, extractor.apply.args[0]), shape)
        for tap, array in ours.items():
            name = f"network {script.called(shape)} {tap}"
            np.testing.assert_allclose(script.kept(name, array), stored[name], rtol=0, atol=1e-4)
    shape = script.IMAGES[0]
    found = extract(extractor, script.pixels(shape), chunk=1)
    name = f"network {script.called(shape)}"
    for tap, array in zip(("2048", "logits_unbiased"), found, strict=True):
        np.testing.assert_allclose(script.kept(tap, array[0]), stored[f"{name} {tap}"], rtol=0, atol=1e-4)


def test_other_weights_are_refused():
    path = REFERENCE / "torch_zip.pth"
    with pytest.raises(
        ValueError, match=r"Conv2d_1a_3x3.conv.weight is missing.*and \d+ more.*not those of torchvision"
    ):
        read_extractor(f"inception:{path}")
    with pytest.raises(ValueError, match="2 channels; Inception takes grey or RGB"):
        inception.activations({}, np.zeros((1, 8, 8, 2), np.uint8))


# Files of torch


def in_torch_files() -> dict[str, np.ndarray]:
    """What tests/reference/inception_reference.py has torch write."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8
    found = {"whole": base, "transposed": base.transpose(2, 0, 1), "part": base[1, :, 1:3], "scalar": np.array(7)}
    for name in ("float64", "float16", "int32", "int16", "int8", "uint8", "bool"):
        found[name] = np.array([0, 1, 3]).astype(name)
    found["bfloat16"] = np.array([0, 1, 3]).astype(ml_dtypes.bfloat16)
    return {**found, "empty": np.zeros((0, 3), np.float32), "parameter": np.array([1.5, -2.0], np.float32)}


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_torch_writes_is_read(name):
    found, expected = read_weights(REFERENCE / name), in_torch_files()
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_safetensors_are_read(tmp_path):
    save_file({"a": np.arange(3.0)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_weights(tmp_path / "a.safetensors")["a"], [0, 1, 2])


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def as_zip(pickled: bytes, **storages: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
    return file.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    return b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + pickled


@pytest.mark.parametrize("layout", [as_zip, as_legacy])
def test_a_pickle_is_never_run(layout, tmp_path):
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    path.write_bytes(layout(pickle.dumps({"weight": Evil(f"touch {proof}")}, 2)))
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system.*only tensors"):
        read_weights(path)
    assert not proof.exists()


def test_what_is_no_dictionary_of_tensors_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_weights(REFERENCE / "torch_module.pth")
    for value, message in [([1], "holds a list"), ({"step": 3}, "'step' is a int"), ({"a": {"b": 1}}, "'a' is a dict")]:
        (tmp_path / "a.pth").write_bytes(as_zip(pickle.dumps(value, 2)))
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / "a.pth")


def tensor_pickle(offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], count: int = 6) -> bytes:
    """A dictionary with one tensor over a storage of `count` float32, as torch pickles it."""
    globe = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK" + bytes([count]) + b"tQ"
    parts = b"".join(pickle.dumps(part, 2)[2:-1] for part in (offset, sizes, strides))
    return b"\x80\x02}U\x01a" + globe + b"(" + storage + parts + b"tRs."


@pytest.mark.parametrize(
    ("offset", "sizes", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 3), (4, 1)),
        (5, (2,), (-1,)),
        (0, (1000, 1000), (0, 0)),
        (-1, (1,), (1,)),
    ],
)
def test_no_tensor_reaches_beyond_its_storage(offset, sizes, strides, tmp_path):
    path, content = tmp_path / "a.pth", np.arange(6, dtype=np.float32)
    path.write_bytes(as_zip(tensor_pickle(1, (2, 2), (3, 1)), **{"0": content.tobytes()}))
    np.testing.assert_array_equal(read_weights(path)["a"], [[1, 2], [4, 5]])
    path.write_bytes(as_zip(tensor_pickle(offset, sizes, strides), **{"0": content.tobytes()}))
    with pytest.raises(ValueError, match="does not lie inside its storage"):
        read_weights(path)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_a_damaged_file_is_an_error_that_names_it(name, tmp_path):
    content, path = (REFERENCE / name).read_bytes(), tmp_path / name
    for length in range(0, len(content) - 1, 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=name):
            read_weights(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 150):  # what was flipped may be a number, and then is not seen
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with contextlib.suppress(ValueError):
            read_weights(path)


# Downloads


class Server:
    """Serves `content` at every path, ranges too; breaks off after `stop` bytes where that is given."""

    def __init__(self, content: bytes) -> None:
        self.content, self.stop, self.ranges, self.asked, self.delay = content, None, True, [], threading.Event()
        self.delay.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                outer.delay.wait(10)
                first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and outer.ranges else 0
                if first >= len(outer.content) and first:
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(outer.content) - first))
                self.end_headers()
                self.wfile.write(outer.content[first : outer.stop])

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/weights"


CONTENT = np.random.PCG64(0).random_raw(70_000).tobytes()


@pytest.fixture
def server():
    """A server of CONTENT."""
    serving = Server(CONTENT)
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


def wanted(*servers: Server, content: bytes = CONTENT) -> WeightsFile:
    return WeightsFile("w.pth", tuple(one.url for one in servers), hashlib.sha256(content).hexdigest())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_downloaded_once_into_the_users_cache(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = fetch(wanted(server))
    assert path == tmp_path / "ddpm_jax" / "weights" / "w.pth"
    assert path.read_bytes() == CONTENT
    assert server.url in capsys.readouterr().err
    assert fetch(wanted(server)) == path
    assert server.asked == [None]
    assert files(path.parent) == ["w.pth"]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(RunError, match="remove it"):
        fetch(wanted(server))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_leaves_no_complete_file_and_is_resumed(ranges, server, tmp_path):
    server.stop, server.ranges = 300_000, ranges
    with pytest.raises(RunError, match=r"broke after 300000 of 560000 bytes.*resumes the download"):
        fetch(wanted(server), tmp_path)
    assert files(tmp_path) == ["w.pth.part"]
    server.stop = None
    assert fetch(wanted(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]
    assert files(tmp_path) == ["w.pth"]


def test_a_part_that_is_all_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    assert fetch(wanted(server), tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_is_named_and_the_file_removed(server, tmp_path):
    other = wanted(server, content=b"other")
    hashes = f"is {hashlib.sha256(CONTENT).hexdigest()}; expected {other.sha256}"
    with pytest.raises(RunError, match=hashes):
        fetch(other, tmp_path)
    assert files(tmp_path) == []


def test_without_a_network_the_error_says_how_to_do_it_by_hand(server, tmp_path):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(RunError) as caught:
        fetch(wanted(server), tmp_path)
    for part in (server.url, str(tmp_path / "w.pth"), "inception:PATH", "refused"):
        assert part in str(caught.value)
    other = Server(CONTENT)  # of two addresses one will do
    assert fetch(wanted(server, other), tmp_path).read_bytes() == CONTENT
    other.server.shutdown()
    other.server.server_close()


def test_without_locks_a_broken_download_leaves_nothing(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "_lock", lambda file: False)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    server.stop = 300_000
    with pytest.raises(RunError, match="broke after"):
        fetch(wanted(server), tmp_path)
    assert files(tmp_path) == []
    server.stop = None
    assert fetch(wanted(server), tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == ["w.pth"]
    assert "0.3 of 0.6 MB" in capsys.readouterr().err


def test_of_two_that_want_it_at_once_one_downloads(server, tmp_path, capsys):
    server.delay.clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(wanted(server), tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join(0.3)
    server.delay.set()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert server.asked == [None]


# Extractors


def means(images):
    """Features of the brightness."""
    return np.asarray(images, np.float64).mean((1, 2))


def test_chunks_have_one_shape_and_change_nothing():
    shapes = []

    def function(images):
        shapes.append(images.shape)
        return means(images), images[:, 0, :, 0] / 2

    images = script.pixels((4, 5, 3), 11)
    found = extract(of_function(function), images, chunk=4)
    assert shapes == [(4, 4, 5, 3)] * 3
    np.testing.assert_allclose(found.features, means(images), rtol=1e-6)
    assert (found.features.dtype, found.logits.dtype, found.logits.shape) == (np.float32, np.float32, (11, 5))
    assert extract(of_function(means), images, chunk=100).logits is None


def test_a_functions_digest_is_that_of_its_source():
    digest = of_function(means).digest
    assert digest == of_function(jax.jit(means)).digest == of_function(functools.partial(means), "means").digest
    assert digest != of_function(lambda images: means(images) + 1).digest
    assert of_function(means).name == "means"
    with pytest.raises(ValueError, match="cannot be read; define it in a file, or give a digest"):
        of_function(eval("lambda images: images"))
    assert of_function(eval("lambda images: images"), digest="0" * 64).digest == "0" * 64


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images, r"\(3, 4, 4, 1\) for 3 images; expected features \[3, d\]"),
        (lambda images: means(images)[:2], r"\(2, 1\) for 3 images"),
        (lambda images: "features", "not an array of numbers"),
    ],
)
def test_a_function_that_gives_something_else_is_an_error(function, message):
    with pytest.raises(ValueError, match=message):
        extract(of_function(function), script.pixels((4, 4, 1), 3))
    with pytest.raises(ValueError, match=r"float64.*expected uint8.*to_pixels"):
        extract(of_function(means), np.zeros((2, 4, 4, 1)))


def test_a_wrong_extractor_is_refused():
    with pytest.raises(ValueError, match="digest is 'abc'; expected a sha256"):
        Extractor("mine", "abc", "none", means)


SOURCE = """
import numpy as np
from ddpm_jax.features.extractor import of_function

def brightness(images):
    return np.asarray(images).mean((1, 2))

class Other:
    pass

mine = of_function(brightness, "mine", preprocessing="none")
"""


def test_features_of_a_python_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    images = script.pixels((4, 4, 1), 3)
    extractor = read_extractor(f"{path}:brightness")
    np.testing.assert_allclose(extract(extractor, images).features, means(images), rtol=1e-6)
    assert (extractor.name, extractor.digest) == ("own.py:brightness", hashlib.sha256(SOURCE.encode()).hexdigest())
    assert read_extractor(f"{path}:mine").name == "mine"
    for name in ("none", "Other"):
        with pytest.raises(ValueError, match=rf"called '{name}'; it has brightness, mine$"):
            read_extractor(f"{path}:{name}")
    path.write_text("x = 1\ny = x.z\n")
    with pytest.raises(ValueError, match=r"own\.py, line 2: AttributeError"):
        read_extractor(f"{path}:y")


@pytest.mark.parametrize("text", ["incepton", "", "weights.pth", "own.py", "own.txt:name"])
def test_an_unknown_extractor_is_an_error_that_lists_the_known(text):
    with pytest.raises(ValueError, match=r"inception:PATH.*PATH\.safetensors.*FILE\.py:NAME"):
        read_extractor(text)


@pytest.mark.parametrize("text", ["inception:no.pth", "no.safetensors", "no.py:name"])
def test_a_missing_file_is_an_error(text):
    with pytest.raises(FileNotFoundError, match="there is no file no"):
        read_extractor(text)


# The classifier

QUICK = {"num_steps": 200, "width": 8, "features": 16, "batch_size": 64, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def trained():
    """A classifier of digits, trained for a second or two."""
    return train_classifier(Digits("train"), **QUICK)


def test_it_learns_and_its_file_is_an_extractor(trained, tmp_path):
    test = Digits("test")
    assert accuracy(trained, test) > 0.75
    path = tmp_path / "digits.safetensors"
    save_classifier(path, trained, {"accuracy": 0.9, "data": specs.described(test)})
    extractor = read_extractor(str(path))
    images, labels = test.arrays["image"], test.arrays["label"]
    features, logits = extract(extractor, images, chunk=100)
    assert features.shape == (360, 16)
    np.testing.assert_array_equal(np.mean(logits.argmax(1) == labels), accuracy(trained, test))
    assert (extractor.name, extractor.preprocessing) == ("classifier digits", "pixels / 127.5 - 1, 8x8x1 as they are")
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    _, about = classifiers.read_classifier(path)
    assert (about["image_shape"], about["num_classes"], about["width"]) == ("[8, 8, 1]", "10", "8")
    assert json.loads(about["data"])["split"] == "test"
    with pytest.raises(ValueError, match="images are 8x8x3; this classifier was trained on 8x8x1"):
        extract(extractor, images.repeat(3, -1))


def test_the_same_training_gives_the_same_file(trained, tmp_path):
    for name, classifier in (("a", trained), ("b", train_classifier(Digits("train"), **QUICK))):
        save_classifier(tmp_path / name, classifier, {"x": 1, "y": "2", "z": [3]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_devices_share_the_work(trained):
    extractor = Extractor("mine", "0" * 64, "none", trained.apply)
    images = Digits("test").arrays["image"][:21]
    alone, shared = extract(extractor, images), extract(extractor, images, chunk=4, mesh=mesh_of(4))
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_it_may_be_called_inside_jit(trained):
    """With its parameters as arguments, not as constants of the program."""
    images = Digits("test").arrays["image"][:8]
    found = jax.jit(lambda apply, images: apply(images))(trained.apply, images)
    np.testing.assert_allclose(found.features, trained.apply(images).features, atol=1e-5)
    assert isinstance(found, Extracted)


def test_a_damaged_classifier_is_an_error(trained, tmp_path):
    path = tmp_path / "a.safetensors"
    save_classifier(path, trained, {})
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as safetensors"):
        load_classifier(path)
    path.write_bytes(content.replace(b'"features":"16"', b'"features":"17"'))
    with pytest.raises(ValueError, match=r"its arrays are not those"):
        load_classifier(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"not a classifier.*inception:"):
        load_classifier(path)


def test_what_is_held_out(tmp_path):
    train, test, where = held_out(Digits("train"))
    assert (len(train), len(test), where) == (1437, 360, "the split test")
    source = Arrays.of(*Digits("test").arrays.values())
    train, test, where = held_out(source)
    assert (len(train), len(test), where) == (324, 36, "a held-out tenth, 36 images")
    images = [gather(part, np.arange(len(part)))["image"].tobytes() for part in (train, test)]
    assert images[0] not in images[1]
    np.savez(
        tmp_path / "a.npz",
        **{f"{split}_{name}": source.arrays[part][:20] for split in ("train", "test") for name, part in NAMES},
    )
    train, test, where = held_out(labelled(Npz(str(tmp_path / "a.npz"), "train_images")))
    assert (test.images, test.labels, where) == ("test_images", "test_labels", "the split test")


NAMES = (("images", "image"), ("labels", "label"))


def test_data_without_labels_are_refused():
    images = script.pixels((8, 8, 1), 12)
    with pytest.raises(ValueError, match="no label, an integer; a classifier learns from labels"):
        labelled(Arrays.of(images))
    with pytest.raises(ValueError, match="the data have the label 2; num_classes is 2"):
        train_classifier(Arrays.of(images, np.arange(12) % 3), **{**QUICK, "num_classes": 2})
    with pytest.raises(ValueError, match="two or more different labels"):
        train_classifier(Arrays.of(images, np.zeros(12, int)))


def test_colour_images_too():
    images = script.pixels((32, 32, 3), 20)
    spec = ConvClassifier(num_classes=2, width=4, features=8)
    params = jax.eval_shape(lambda key: spec.init(key, (32, 32, 3)), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    found = Classifier(spec, (32, 32, 3), zeros).apply(images)
    assert (found.features.shape, found.logits.shape) == ((20, 8), (20, 2))


def test_the_script_writes_the_file(tmp_path, capsys, monkeypatch):
    experiment = Path(__file__).parents[1] / "experiments" / "digits.py"
    output = tmp_path / "digits.safetensors"
    monkeypatch.setattr(training, "set_up_jax", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = [str(experiment), "--output", str(output), "--steps", "200", "--width", "8", "--features", "16"]
    training.main([*arguments, "--batch-size", "64", "--learning-rate", "1e-2"])
    assert "accuracy on the split test" in capsys.readouterr().out
    _, about = classifiers.read_classifier(output)
    assert float(about["accuracy"]) > 0.75
    assert dataclasses.asdict(Digits("train")).items() <= json.loads(about["data"]).items()
    with pytest.raises(ValueError, match=r"expected NAME\.safetensors"):
        training.main([str(experiment), "--output", "a.pth"])
