"""What is read is what was written, or it is refused: a flipped bit, a missing file, another shape."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.storage.errors import CheckpointError
from ddpm_jax.storage.integrity import digest


@pytest.fixture
def trees():
    return {
        "a": {"w": jnp.linspace(-1, 1, 300), "half": jnp.ones((3, 5), jnp.bfloat16)},
        "b": {"step": jnp.int32(7)},
    }


def shapes(trees):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return lambda about: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), trees)


@pytest.fixture
def saved(trees, tmp_path):
    checkpoints = Checkpoints(make(tmp_path))
    for step in (1, 2):
        checkpoints.save(step, trees, {"note": "here"})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def make(folder):
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints"


def test_round_trip(saved, trees):
    step, restored = saved.restore_newest(shapes(trees), report=pytest.fail)
    assert step == 2
    assert restored["about"]["note"] == "here"
    jax.tree.map(np.testing.assert_array_equal, restored["a"], trees["a"])
    assert int(restored["b"]["step"]) == 7


def test_one_tree_without_the_others(saved, trees):
    restored = saved.restore(1, shapes({"a": trees["a"]}))
    assert set(restored) == {"a", "about"}


def test_the_digest_sees_every_bit():
    """Flip each bit of each word, one at a time: no flip leaves the digest as it was."""
    words = np.arange(4, dtype=np.uint32) * 77
    flips = np.stack(
        [words ^ np.eye(4, dtype=np.uint32)[place] * np.uint32(1 << bit) for place in range(4) for bit in range(32)]
    )
    values = jax.vmap(digest)(jnp.asarray(flips))
    assert not np.any(np.asarray(values) == int(digest(jnp.asarray(words))))


def test_the_digest_does_not_depend_on_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    array = jax.random.normal(jax.random.key(0), (16, 3))
    sharded = jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert int(digest(sharded)) == int(digest(array))


def data_files(checkpoints, step):
    return [
        path for path in (checkpoints.folder / str(step)).rglob("*") if path.is_file() and path.stat().st_size > 100
    ]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(saved, trees):
    """In turn: a bit flipped in the middle of each file, the file cut in half, the file gone."""
    damages = {
        "flipped": lambda path, content: path.write_bytes(flip(content)),
        "truncated": lambda path, content: path.write_bytes(content[: len(content) // 2]),
        "removed": lambda path, content: path.unlink(),
    }
    noticed = 0
    for path in data_files(saved, 2):
        content = path.read_bytes()
        for damage in damages.values():
            damage(path, content)
            reports = []
            step, restored = saved.restore_newest(shapes(trees), report=reports.append)
            assert step == (1 if reports else 2)
            jax.tree.map(np.testing.assert_array_equal, restored["a"], trees["a"])
            noticed += bool(reports)
            path.write_bytes(content)
    assert noticed > 0


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def test_where_all_are_broken_the_error_says_why(saved, trees):
    for step in (1, 2):
        for path in data_files(saved, step):
            path.unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: checkpoint 2 cannot be read"):
        saved.restore_newest(shapes(trees), report=lambda text: None)


def test_none_at_all(trees, tmp_path):
    assert Checkpoints(make(tmp_path)).restore_newest(shapes(trees), report=pytest.fail) is None


def test_which_checkpoints_stay(trees, tmp_path):
    checkpoints = Checkpoints(make(tmp_path), keep_last=2, keep_every=4)
    for step in range(1, 11):
        checkpoints.save(step, trees, {})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 9, 8, 4]
    checkpoints.set_aside(after=8)
    assert checkpoints.steps() == [8, 4]
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "broken").iterdir()) == ["10", "9"]
    checkpoints.save(9, trees, {})
    checkpoints.wait()
    assert checkpoints.steps()[0] == 9
    checkpoints.close()


FAILING = """
import sys
from pathlib import Path
import jax.numpy as jnp
from ddpm_jax.storage.checkpoint import Checkpoints

folder = Path(sys.argv[1]) / "checkpoints"
folder.write_text("a file where the folder should be")
checkpoints = Checkpoints(folder)
checkpoints.finish(1, {"training": {"step": jnp.zeros(3)}}, {})
"""


def test_a_process_ends_after_a_save_that_failed(tmp_path):
    """Orbax's threads would wait for minutes for a folder that is made in the background."""
    command = [sys.executable, "-c", FAILING, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "RunError" in found.stderr
