"""Rows on disk: what was appended comes back, whatever a kill or a disk did to the end of it."""

import numpy as np
import pytest

from ddpm_jax.evaluation.shards import Shards, Some

ROWS = np.arange(70).reshape(10, 7).astype(np.float32)


@pytest.fixture
def shards(tmp_path):
    made = Shards(tmp_path / "rows")
    for start, stop in ((0, 4), (4, 5), (5, 10)):
        made.append(ROWS[start:stop])
    return made


def test_they_are_the_rows_that_were_appended(shards):
    for found in (shards, Shards(shards.folder)):
        assert len(found) == 10
        np.testing.assert_array_equal(found[:], ROWS)
        np.testing.assert_array_equal(found[3:6], ROWS[3:6])
        np.testing.assert_array_equal(found[np.array([0, 4, 5, 9])], ROWS[[0, 4, 5, 9]])
        assert found[2:2].shape == (0, 7)
    np.testing.assert_array_equal(Some.first(shards, 5)[:], ROWS[:5])
    np.testing.assert_array_equal(Some.first(shards, 5)[3:100], ROWS[3:5])
    assert len(Some.first(shards, 5)) == 5
    np.testing.assert_array_equal(Some.spread(shards, 4)[:], ROWS[[0, 3, 6, 9]])
    np.testing.assert_array_equal(Some.spread(shards, 99)[2:4], ROWS[2:4])


def test_they_end_where_one_is_missing_damaged_or_half_written(shards):
    paths = sorted(shards.folder.iterdir())
    (shards.folder / ".000000010-000000012.npy.77").write_bytes(b"half")
    assert len(Shards(shards.folder)) == 10
    whole = paths[1].read_bytes()
    for damage in (whole[:-3], b"", b"not an array"):
        paths[1].write_bytes(damage)
        assert len(Shards(shards.folder)) == 4
    paths[1].unlink()
    again = Shards(shards.folder)
    again.append(ROWS[4:5])
    assert len(Shards(shards.folder)) == 10  # what came after fits again
    np.testing.assert_array_equal(Shards(shards.folder)[:], ROWS)


def test_rows_that_are_not_there_are_an_error(shards):
    with pytest.raises(ValueError, match=r"index is .*expected rows 0..9"):
        shards[np.array([3, 10])]
    with pytest.raises(ValueError, match=r"indices is .*; expected rows 0..9"):
        Some.first(shards, 11)


def test_only_the_shards_asked_for_are_read(shards):
    sorted(shards.folder.iterdir())[0].unlink()
    np.testing.assert_array_equal(shards[4:10], ROWS[4:])
