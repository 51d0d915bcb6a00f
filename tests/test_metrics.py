"""The Frechet distance, against its closed forms and SciPy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from ddpm_jax.metrics.frechet import Moments, frechet_distance, moments


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)), 0.3 + rng.normal(size=(200, 8))


def test_it_is_the_formula_with_scipys_root(sets):
    a, b = map(moments, sets)
    root = scipy.linalg.sqrtm(a.cov @ b.cov).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_have_distance_0(sets):
    a = moments(sets[0])
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9 * np.trace(a.cov))


def test_normals_that_share_axes_differ_by_their_means_and_stds():
    a, b = Moments(np.zeros(2), np.diag([4.0, 1.0])), Moments(np.array([3.0, 0.0]), np.diag([1.0, 9.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + (2 - 1) ** 2 + (1 - 3) ** 2)


def test_it_is_finite_for_singular_covariances(sets):
    narrow = np.concatenate([sets[0], sets[0]], axis=1)  # rank 8 of 16
    few = moments(narrow[:5])
    assert np.isfinite(frechet_distance(few, moments(narrow)))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), r"features have shape \(1, 3\)"),
        (np.zeros(3), "n >= 2"),
        (np.array([[0.0], [np.nan], [1.0]]), r"image 1 are not all finite \(1 such"),
    ],
)
def test_wrong_features_are_an_error(features, message, unchecked):
    with pytest.raises(ValueError, match=message):
        moments(features)
