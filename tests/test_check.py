"""`ddpm-jax check` reads everything, says what there is, and lists all that is wrong."""

import numpy as np
import pytest
from helpers import EXPERIMENT
from PIL import Image

from ddpm_jax.cli import main
from ddpm_jax.data import Arrays, Digits
from ddpm_jax.data.examine import examine, quick_problems
from ddpm_jax.data.prepare import prepare
from ddpm_jax.storage import specs


def check(capsys, *arguments) -> tuple[int, str]:
    """The exit status of a check, and what it prints."""
    with pytest.raises(SystemExit) as stop:
        main.main(["check", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return int(str(stop.value.code)), printed.out + printed.err


def picture(path, height=8, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(value).integers(0, 256, (height, 8), np.uint8)
    image[0, 0], image[0, 1] = 3, 250
    image = image.clip(3, 250)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 5 images."""
    for name in "abc":
        for i in range(5):
            picture(tmp_path / "data" / name / f"{i}.png", value=i)
    return tmp_path / "data"


def test_a_folder_without_faults(capsys, folder):
    status, text = check(capsys, folder, "--labels")
    assert status == 0
    for line in ("15 grey images of 8x8", "values    3 to 250", "class 1 b: 5", "no faults found"):
        assert line in text


def test_all_faults_of_a_folder_are_listed(capsys, folder):
    for name in ("a/1.png", "c/4.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    (folder / "b" / "2.png").write_bytes(b"")
    picture(folder / "b" / "3.png", height=9)
    status, text = check(capsys, folder, "--labels")
    assert status == 1
    for name in ("a/1.png", "b/2.png", "c/4.png"):
        assert f"{name} cannot be read as an image" in text
    assert "11 grey images of 8x8 (first" in text
    assert "1 grey image of 9x8 (first" in text
    assert "4 faults found" in text
    assert check(capsys, folder, "--size", 8)[1].count("cannot be read") == 3


def test_an_npz_and_its_splits(capsys, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    path = tmp_path / "x.npz"
    np.savez(path, train_images=images, train_labels=np.arange(6), test_images=images[:2], test_labels=np.arange(2))
    status, text = check(capsys, path)
    assert status == 0
    assert "6 grey images of 8x8" in text
    assert "2 grey images of 8x8" in text
    status, text = check(capsys, path, "--num-classes", 4)
    assert status == 1
    assert "2 examples have labels outside 0..3: 4, 5" in text
    np.savez(path, images=images.astype(np.int32))
    assert check(capsys, path)[0] == 1
    np.savez(path, images=images)
    path.write_bytes(path.read_bytes()[:-9])
    status, text = check(capsys, path)
    assert status == 1
    assert "is damaged or not complete; write or fetch it again" in text


def test_an_experiment_a_run_and_a_source_of_a_file(capsys, tmp_path, tiny):
    specs.save(tiny, tmp_path / "run" / "experiment.json")
    (tmp_path / "own.py").write_text(
        f"{EXPERIMENT}\nclass Mine:\n    def __len__(self): return 3\n"
        "    def __getitem__(self, i):\n"
        "        return {'image': np.zeros((8, 8, 1), np.uint8), 'label': [0, 'cat', 0.5][i]}\n"
    )
    for data in (tmp_path / "own.py", tmp_path / "run", f"{tmp_path / 'own.py'}:experiment"):
        status, text = check(capsys, data)
        assert status == 0
        assert "1,437 grey images of 8x8" in text
    status, text = check(capsys, f"{tmp_path / 'own.py'}:Mine")
    assert status == 1
    assert "source[1][\"label\"] is 'cat'" in text
    assert 'source[2]["label"] is 0.5' in text
    status, text = check(capsys, f"{tmp_path / 'own.py'}:nosuch")
    assert status == 1
    assert "defines no source nosuch" in text


def test_a_prepared_data_set(capsys, tmp_path):
    prepare("mine", {"train": Digits("test")}, str(tmp_path), progress=False)
    status, text = check(capsys, "mine", "--data-dir", tmp_path)
    assert status == 0
    assert "360 grey images of 8x8" in text
    assert "class 3: 36" in text


@pytest.mark.parametrize("data", ["no/such/folder", "nosuch.npz", "nosuch.py", "nosuch"])
def test_what_is_not_there_is_wrong_input(capsys, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert check(capsys, data)[0] == 2


class Faulty:
    """Every other example has a fault of its own."""

    examples = (
        {"image": np.zeros((4, 4, 1), np.uint8), "label": 1},
        {"image": np.zeros((4, 4, 1)), "label": 1},
        {"image": np.full((4, 4, 1), 9, np.uint8), "label": 2},
        {"photo": 3},
        {"image": np.zeros((4, 4, 1), np.uint8)},
        None,
        {"image": np.zeros((2, 3, 4), np.uint8), "label": 2**40},
    )

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        if self.examples[index] is None:
            raise KeyError("gone")
        return self.examples[index]


def test_every_fault_of_an_own_source_is_found():
    found = examine(Faulty(), num_classes=2)
    assert found.count == 7
    assert dict(found.shapes) == {(4, 4, 1): 3}
    assert (found.low, found.high, found.mean) == (0, 9, 3.0)
    assert found.labels == {1: 1, 2: 1}
    expected = ["float64", "source[3] is ['photo']", "source[5] cannot be read (KeyError", "1099511627776"]
    expected += ["1 of 3 examples have no label", "1 examples have labels outside 0..1: 2"]
    assert len(found.problems) == len(expected)
    for text, problem in zip(expected, found.problems, strict=True):
        assert text in problem


def test_labels_in_memory_are_looked_at_before_a_run():
    images = np.zeros((4, 8, 8), np.uint8)
    assert quick_problems(Arrays.of(images, np.arange(4)), 4) == []
    assert quick_problems(Arrays.of(images, np.arange(4)), None) == []
    assert "outside 0..2: 3" in quick_problems(Arrays.of(images, np.arange(4)), 3)[0]
    assert "outside 0..2: -1" in quick_problems(Arrays.of(images, np.arange(4) - 1), 3)[0]
