"""A run notices that its data have changed, and loses nothing: neither what it learned nor what is on disk."""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import Labelled
from PIL import Image

from ddpm_jax import Experiment
from ddpm_jax.data import Arrays, Digits, Folder, Npz, Tfds
from ddpm_jax.data import fingerprint as fingerprints
from ddpm_jax.data.deferred import Deferred
from ddpm_jax.data.fingerprint import changes, fingerprint
from ddpm_jax.data.given import Given
from ddpm_jax.data.prepare import prepare
from ddpm_jax.diffusion import schedule
from ddpm_jax.errors import RunError
from ddpm_jax.evaluation import provenance
from ddpm_jax.nets import Network
from ddpm_jax.nets.unet import UNet
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import steps_in
from ddpm_jax.training.loop import train
from ddpm_jax.training.resume import set_aside_lost
from ddpm_jax.training.same_data import check_data, write_fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pixels(seed=0, count=12):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def pictures(folder, seeds=range(12), ending="bmp"):
    """Uncompressed images: of equal size, whatever they show."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(seeds):
        Image.fromarray(pixels(seed, 1)[0, ..., 0]).save(folder / f"{place:03d}.{ending}")
    return folder


def experiment(data, **changes):
    net = UNet(8, (1,), 1, (), dropout=0.0, norm_groups=4, num_classes=changes.pop("num_classes", None))
    return Experiment("tiny", data, net, schedule=schedule.Cosine(20), **{"num_steps": 4, "batch_size": 4, **changes})


class Own:
    """A source of a user's own, no dataclass."""

    def __init__(self, images, labels=None, broken=()):
        self.images, self.labels, self.broken = images, labels, broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError(f"cannot read record {index}")
        label = {} if self.labels is None else {"label": self.labels[index]}
        return {"image": self.images[index], **label}


class Named(Own):
    """One that says what it holds."""

    def fingerprint(self):
        return {"shard 0": str(self.images[:6].sum()), "shard 1": str(self.images[6:].sum())}


class Random(Own):
    """One that draws its crops."""

    def __getitem__(self, index):
        return {"image": np.random.default_rng().integers(0, 256, (8, 8, 1), np.uint8)}


# Fingerprints


def rewritten(path: Path, **arrays):
    np.savez(path, **arrays)
    return path


def test_every_change_of_a_folder_is_named(tmp_path):
    folder = pictures(tmp_path / "data")
    before = fingerprint(Folder(str(folder)))
    assert changes(before, fingerprint(Folder(str(folder)))) == []
    (folder / "000.bmp").write_bytes((folder / "001.bmp").read_bytes())
    (folder / "002.bmp").unlink()
    shutil.copy(folder / "003.bmp", folder / "new.bmp")
    assert changes(before, fingerprint(Folder(str(folder)))) == [
        "1 file added: new.bmp",
        "1 file removed: 002.bmp",
        "1 file changed: 000.bmp",
    ]
    for seed in range(20):
        Image.fromarray(pixels(seed, 1)[0, ..., 0]).save(folder / f"more{seed:02d}.bmp")
    lines = changes(before, fingerprint(Folder(str(folder))))
    assert "21 files added: more00.bmp, more01.bmp, more02.bmp, more03.bmp, more04.bmp and 16 more" in lines


@pytest.mark.parametrize("pause", [0, 0.3], ids=["at once", "settled"])
def test_one_byte_of_a_file_is_noticed_though_size_and_time_stay(tmp_path, monkeypatch, pause):
    """Also where the file was known: its status says that it was written."""
    if pause:
        monkeypatch.setattr(fingerprints, "YOUNG_NS", 2 * 10**8)
    folder = pictures(tmp_path / "data")
    file = folder / "005.bmp"
    status = file.stat()
    time.sleep(pause)
    before = fingerprint(Folder(str(folder)))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changes(before, fingerprint(Folder(str(folder)))) == ["1 file changed: 005.bmp"]


def test_a_new_time_is_no_change_and_known_files_are_not_read_again(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "data")
    read = []
    digest = fingerprints._digest
    monkeypatch.setattr(fingerprints, "_digest", lambda file: read.append(file) or digest(file))
    monkeypatch.setattr(fingerprints, "YOUNG_NS", 0)
    before = fingerprint(Folder(str(folder)))
    assert len(read) == 12
    assert fingerprint(Folder(str(folder))) == before
    assert len(read) == 12
    os.utime(folder / "000.bmp", ns=(1, 1))
    assert fingerprint(Folder(str(folder))) == before
    assert len(read) == 13
    shutil.copytree(folder, tmp_path / "copy")
    assert changes(before, fingerprint(Folder(str(tmp_path / "copy")))) == []


def test_an_empty_class_folder_is_a_change(tmp_path):
    """It moves the numbers of the classes after it."""
    folder = tmp_path / "data"
    pictures(folder / "a", range(2)), pictures(folder / "c", range(2))
    before = fingerprint(Folder(str(folder), labels=True))
    assert fingerprint(Folder(str(folder))).parts != before.parts
    (folder / "b").mkdir()
    with pytest.warns(UserWarning, match="without images: b"):
        assert changes(before, fingerprint(Folder(str(folder), labels=True))) == ["1 file changed: (the class folders)"]


@pytest.mark.parametrize("part", ["image", "label"])
def test_every_change_of_arrays_is_named(tmp_path, part):
    path, arrays = tmp_path / "x.npz", {"images": pixels(), "labels": np.arange(12)}

    def read():
        return fingerprint(Npz(str(path), labels="labels"))

    before = (rewritten(path, **arrays), read())[1]
    assert changes(before, (rewritten(path, **arrays, more=np.zeros(3)), read())[1]) == []
    np.savez_compressed(path, **arrays)
    assert changes(before, read()) == []
    arrays[f"{part}s"] = arrays[f"{part}s"] + 1
    assert changes(before, (rewritten(path, **arrays), read())[1]) == [f"1 array changed: {part}"]


def test_a_prepared_data_set_that_is_prepared_anew_is_noticed(tmp_path):
    def prepared(images):
        prepare("mine", {"train": Arrays.of(images)}, str(tmp_path), overwrite=True, progress=False)
        return fingerprint(Tfds("mine", "train[:50%]", str(tmp_path)))

    images = pixels()
    before = prepared(images)
    assert changes(before, prepared(images)) == []
    images[3, 4, 5] ^= 1
    assert any("mine-train" in line for line in changes(before, prepared(images)))


@pytest.mark.parametrize("kind", [Own, Named])
def test_changes_of_an_own_source_are_noticed(kind):
    images = pixels(count=12)
    before = fingerprint(kind(images))
    assert changes(before, fingerprint(kind(images.copy()))) == []
    images[7, 0, 0] ^= 1
    expected = {Own: "1 example changed: example 7", Named: "1 part changed: shard 1"}[kind]
    assert changes(before, fingerprint(kind(images))) == [expected]
    assert changes(before, fingerprint(Own(pixels(count=13))))[0] == "12 examples then, 13 now"


def test_an_example_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"source\[7\] cannot be read \(OSError: cannot read record 7\)"):
        experiment(Own(pixels(), broken=(7,)))


def test_a_source_that_draws_its_examples_is_known_by_its_length():
    assert changes(fingerprint(Random(pixels())), fingerprint(Random(pixels()))) == []
    assert changes(fingerprint(Random(pixels())), fingerprint(Random(pixels(count=3))))


def test_data_named_later_are_those_that_they_stand_for(tmp_path):
    folder = pictures(tmp_path / "data")
    assert fingerprint(Deferred((8, 8, 1), str(folder))) == fingerprint(Folder(str(folder), 8, channels=1))


def test_a_fingerprint_survives_json():
    found = fingerprint(Arrays.of(pixels()))
    assert fingerprints.Fingerprint.from_json(found.as_json()) == found
    with pytest.raises(ValueError, match="damaged"):
        fingerprints.Fingerprint.from_json("{}")


def test_cached_statistics_notice_any_pixel_of_any_source(tmp_path):
    """Far beyond a thousand examples, whichever of them changes, in size and names as before."""
    images = np.zeros((3000, 4, 4, 1), np.uint8)
    (tmp_path / "f").mkdir()
    for place in range(1500):
        (tmp_path / "f" / f"{place:04d}.bmp").write_bytes(b"x" * 10)  # known by their bytes: not decoded
    sources = [lambda: Own(images), lambda: Arrays.of(images)]
    before = [provenance.of_source(make())["digest"] for make in sources]
    images[777, 0, 0] = 1
    assert all(provenance.of_source(make())["digest"] != old for make, old in zip(sources, before, strict=True))
    old = provenance.of_source(Folder(str(tmp_path / "f")))["digest"]
    (tmp_path / "f" / "0777.bmp").write_bytes(b"x" * 9 + b"y")
    assert provenance.of_source(Folder(str(tmp_path / "f")))["digest"] != old


# What a run says of its data


def begun(workdir, of, step=2):
    """A folder as a run of `of` leaves it at a step, without its arrays."""
    found = check_data(of, workdir, print)
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    write_fingerprint(workdir, found)
    return workdir


@pytest.mark.parametrize("kind", ["folder", "npz", "own", "later"])
def test_a_run_whose_data_have_changed_is_not_resumed(tmp_path, kind):
    """And nothing on disk has changed; with the data as they were, or told to, it is."""
    images = pixels()
    folder, path = pictures(tmp_path / "data"), rewritten(tmp_path / "x.npz", images=images)
    make = {
        "folder": lambda: Folder(str(folder)),
        "npz": lambda: Npz(str(path)),
        "own": lambda: Own(images),
        "later": lambda: Deferred((8, 8, 1), str(folder)),
    }[kind]
    workdir = begun(tmp_path / "run", experiment(make()))
    check_data(experiment(make()), workdir, print)
    stored = (workdir / "data.json").read_text()
    images[3], first = 0, (folder / "000.bmp").read_bytes()
    rewritten(path, images=images)
    (folder / "000.bmp").write_bytes((folder / "001.bmp").read_bytes())
    with pytest.raises(RunError, match=r"learned from other data than these until step 2:\n.*changed") as refused:
        check_data(experiment(make()), workdir, print)
    assert f"delete {workdir / 'data.json'}" in str(refused.value)
    assert (workdir / "data.json").read_text() == stored
    assert check_data(experiment(make(), num_steps=2), workdir, print) is None  # finished: nothing is read
    (workdir / "data.json").unlink()
    assert check_data(experiment(make()), workdir, print) is not None
    (workdir / "data.json").write_text(stored)
    images[3] = pixels()[3]
    (folder / "000.bmp").write_bytes(first)
    rewritten(path, images=images)
    check_data(experiment(make()), workdir, print)


def test_a_run_made_before_is_told_of_once(tmp_path):
    of, said = experiment(Npz(str(rewritten(tmp_path / "x.npz", images=pixels())))), []
    workdir = begun(tmp_path / "run", of)
    (workdir / "data.json").unlink()
    write_fingerprint(workdir, check_data(of, workdir, said.append))
    assert "does not say what its data held at step 2; data.json keeps what they hold now" in said[0]
    check_data(of, workdir, said.append)
    assert len(said) == 1
    (workdir / "data.json").write_text("{")
    with pytest.raises(RunError, match=r"data.json cannot be read .*delete it to continue"):
        check_data(of, workdir, said.append)


def test_faults_are_found_before_the_first_step(tmp_path, one):
    folder = pictures(tmp_path / "data", range(40), "png")
    for name in ("007.png", "033.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(ValueError, match=r"data have faults:\n.*007.png cannot be read.*\n.*033.png cannot be read"):
        train(experiment(Folder(str(folder))), tmp_path / "run", one)
    labels = np.array([0, 1, 5] * 4)
    with pytest.raises(ValueError, match=r"net.num_classes is 3, but 4 examples have labels outside 0..2: 5"):
        train(experiment(Arrays.of(pixels(), labels), num_classes=3), tmp_path / "run", one)
    for name in ("a", "b", "c"):
        pictures(tmp_path / "classes" / name, range(2))
    with pytest.raises(ValueError, match=r"the data have 3 classes; net\.num_classes is 2"):
        train(experiment(Folder(str(tmp_path / "classes"), labels=True), num_classes=2), tmp_path / "run", one)
    assert not (tmp_path / "run").exists()


# Data of any class


@dataclass(frozen=True)
class Net(Network):
    """A network's spec, as far as an experiment looks at it."""

    def init(self, key, image_shape): ...
    def bind(self, params): ...


class PlainNet(Network):
    def init(self, key, image_shape): ...
    def bind(self, params): ...


def test_data_of_a_plain_class_are_kept_by_a_digest(tmp_path):
    images = pixels()
    of = experiment(Own(images))
    assert isinstance(of.data, Given)
    assert of.data.name == "Own"
    np.testing.assert_array_equal(of.data[3]["image"], images[3])
    assert experiment(Own(images.copy())) == of
    specs.save(of, tmp_path / "experiment.json")
    again = specs.load(tmp_path / "experiment.json")
    assert again == of
    assert len(again.data) == 12
    there = dataclasses.replace(of, data=Given("Own", "of another process"))
    with pytest.raises(ValueError, match=r"object of class Own, .* give it again"):
        len(there.data)
    assert isinstance(experiment([{"image": images[0]}] * 3).data, Given)
    with pytest.raises(ValueError, match=r"source\[0\] is ndarray; expected a dictionary.*Arrays.of"):
        experiment(images)
    Experiment("a", Digits(), Net())
    with pytest.raises(ValueError, match=r"net is .*PlainNet.*; expected a Network: a frozen dataclass"):
        Experiment("a", Digits(), PlainNet())


@pytest.mark.parametrize(
    ("labels", "message"),
    [(list(np.eye(12)), "argmax"), (["cat"] * 12, "'cat'"), ([i + 0.7 for i in range(12)], "0.7")],
)
def test_labels_of_an_own_source_are_named(labels, message):
    with pytest.raises(ValueError, match=rf'source\[\d+\]\["label"\] is .*{message}.*') as refused:
        experiment(Own(pixels(), labels), num_classes=12).check()
    assert "expected one integer" in str(refused.value)


# Whole trainings


def metrics_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["unreadable", "label"])
def test_a_bad_example_ends_a_training_that_is_saved(tiny, tmp_path, one, capsys, fault):
    """The state before it is saved, and with the data mended the same command resumes there."""
    looked_at = {int(place) for place in np.linspace(0, 159, fingerprints.LOOKED_AT)}
    labels, bad = np.zeros(160, int), next(place for place in range(100, 160) if place not in looked_at)
    labels[bad] = 77 if fault == "label" else 0
    source = Own(pixels(0, 160), labels, broken=(bad,) if fault == "unreadable" else ())
    short = dataclasses.replace(tiny, net=Labelled(), num_steps=12, log_every=5)
    of = dataclasses.replace(short, data=source, checkpoint_every=100, sample_every=100)
    message = f"OSError: cannot read record {bad}" if fault == "unreadable" else "the label 77; net.num_classes is 10"
    with pytest.raises(ValueError, match=message) as stopped:
        train(of, tmp_path, one)
    (saved,) = steps_in(tmp_path / "checkpoints")
    assert 0 < saved < 10
    assert f"The state after step {saved} is saved" in str(stopped.value)
    assert "data: Given, 160 grey images of 8x8" in capsys.readouterr().err
    mended = dataclasses.replace(of, data=Own(pixels(1, 160), np.ones(160, int)))
    if fault == "label":
        train(mended, tmp_path, one)
        assert max(steps_in(tmp_path / "checkpoints")) == 12
        assert metrics_of(tmp_path) == [5, 10, 12]
    else:
        write_fingerprint(tmp_path, check_data(mended, tmp_path, print))
    assert f"the data have been repaired since step {saved}:" in capsys.readouterr().out
    again = dataclasses.replace(of, data=Own(pixels(2, 160), labels % 77), num_steps=13)
    with pytest.raises(RunError, match="learned from other data"):
        train(again, tmp_path, one)


def test_what_a_run_left_is_set_aside(tmp_path):
    """Metrics or pictures without a checkpoint; with one, or with nothing to lose, all stays where it is."""
    said = []
    for path in ("experiment.json", "data.json", "own.py", "metrics.jsonl", "samples/00000004.png", "tensorboard/a"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    set_aside_lost(tmp_path, said.append)
    assert said == []
    shutil.rmtree(tmp_path / "checkpoints")
    set_aside_lost(tmp_path, said.append)
    assert len(said) == 1
    assert "no checkpoint to resume from: training starts at step 0" in said[0]
    for path in ("experiment.json", "data.json", "metrics.jsonl", "samples/00000004.png", "tensorboard/a"):
        assert (tmp_path / "lost-1" / path).read_text() == path
        assert not (tmp_path / path).exists()
    assert (tmp_path / "lost-1" / "own.py").exists()
    set_aside_lost(tmp_path, said.append)
    assert len(said) == 1
    (tmp_path / "metrics.jsonl").write_text("more")
    set_aside_lost(tmp_path, said.append)
    assert (tmp_path / "lost-2" / "metrics.jsonl").read_text() == "more"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_what_a_run_left_is_kept_where_its_checkpoints_are_gone(tiny, tmp_path, one, capsys):
    folder = tmp_path / "run"
    train(tiny, folder, one)
    left = (folder / "metrics.jsonl").read_text()
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "00000006.png").write_bytes(b"a picture")
    shutil.rmtree(folder / "checkpoints")
    train(dataclasses.replace(tiny, num_steps=2), folder, one)
    assert "no checkpoint to resume from: training starts at step 0" in capsys.readouterr().out
    assert metrics_of(folder) == [2]
    assert (folder / "lost-1" / "metrics.jsonl").read_text() == left
    assert (folder / "lost-1" / "samples" / "00000006.png").read_bytes() == b"a picture"
    assert specs.load(folder / "lost-1" / "experiment.json") == tiny
    train(tiny, folder, one)
    assert metrics_of(folder)[-1] == 6
    assert not (folder / "lost-2").exists()
