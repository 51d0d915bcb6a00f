"""The metrics, against closed forms, sums in full, and torch-fidelity, prdc and SciPy on the same features."""

import json

import jax
import metrics_reference as reference
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.metrics import kernel
from ddpm_jax.metrics.estimate import Estimate
from ddpm_jax.metrics.frechet import Moments, frechet_distance, load_moments, merge, moments, save_moments
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.jackknife import frechet_estimate, leave_one_out
from ddpm_jax.metrics.kernel import Polynomial, _variance, kernel_distance, mmd2
from ddpm_jax.metrics.manifold import manifold
from ddpm_jax.metrics.memorisation import memorisation
from ddpm_jax.metrics.neighbours import neighbours
from ddpm_jax.metrics.sliced import merged_steps, sliced_wasserstein, unit_directions, wasserstein
from ddpm_jax.metrics.spectrum import power_spectrum, rings

STORED = reference.stored()


class Parts:
    """Rows that give a few at a time: whoever wants all at once fails."""

    def __init__(self, rows: np.ndarray, most: int):
        self.rows, self.most = rows, most

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        part = self.rows[index]
        assert len(part) <= self.most
        return part


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)), 0.3 + rng.normal(size=(200, 8))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def all_distances(a, b):
    return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1))


# Independent implementations.


@pytest.mark.parametrize("case", reference.CASES)
def test_they_agree_with_torch_fidelity_and_prdc(case):
    ours = {name: STORED[f"{case}/{name}"] for name in ("frechet", "kernel", "subsets", "prdc", "precision_recall")}
    found = reference.ours(case)
    np.testing.assert_allclose(found["frechet"], ours["frechet"], rtol=1e-6)
    size = np.abs(ours["subsets"]).max() if case == "far" else 1.0  # a far origin makes large kernels
    np.testing.assert_allclose(found["subsets"], ours["subsets"], rtol=0, atol=1e-4 * size if case == "far" else 1e-7)
    np.testing.assert_allclose(found["kernel"], ours["kernel"], rtol=0, atol=1e-4 * size if case == "far" else 1e-7)
    np.testing.assert_allclose(found["prdc"], ours["prdc"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(found["precision_recall"], ours["precision_recall"], rtol=0, atol=1e-7)  # their float32


def test_the_inception_score_is_torch_fidelitys():
    np.testing.assert_allclose(reference.our_score(), STORED["score"], rtol=1e-12)


def test_ill_conditioned_covariances_are_as_by_scipys_root():
    assert frechet_distance(*reference.ill_conditioned()) == pytest.approx(float(STORED["ill"]), rel=1e-6)


# The Frechet distance.


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
    same = moments(np.ones((4, 3), np.float32))
    assert frechet_distance(same, same) == 0.0


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_moments_do_not_depend_on_blocks(sets, block):
    far = sets[0] + 1e6
    found = moments(Parts(far, block), block)
    np.testing.assert_allclose(found.mean, far.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.cov, np.cov(far, rowvar=False), rtol=1e-8, atol=1e-9)
    assert found.count == 300


def test_moments_of_parts_merge(sets):
    whole, parts = moments(sets[0]), [moments(sets[0][i:j]) for i, j in ((0, 2), (2, 150), (150, 300))]
    merged = merge(merge(parts[0], parts[1]), parts[2])
    np.testing.assert_allclose(merged.cov, whole.cov, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    assert merged.count == 300
    with pytest.raises(ValueError, match=r"b.count is None; expected the number of rows"):
        merge(whole, Moments(whole.mean, whole.cov))


def test_moments_survive_a_file(sets, tmp_path):
    whole, path = moments(sets[0]), tmp_path / "deeper" / "moments.npz"
    save_moments(path, whole, {"features": "a network", "images": 300})
    found, provenance = load_moments(path)
    np.testing.assert_array_equal(found.cov, whole.cov)
    assert (found.count, provenance) == (300, {"features": "a network", "images": 300})
    np.savez(tmp_path / "published.npz", mu=whole.mean.astype(np.float32), sigma=whole.cov)
    found, provenance = load_moments(str(tmp_path / "published.npz"))
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-6)
    assert (found.count, provenance) == (None, {})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "'mu'; expected `mu` and `sigma`"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mu \(3,\), sigma \(2, 2\)'; expected mu \[D\] and sigma \[D, D\]"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "expected finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "is 2.0; expected 0: a covariance"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "a covariance"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "floating-point"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "provenance": np.array("{")}, "cannot be read"),
    ],
)
def test_files_that_hold_no_moments_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_moments(tmp_path / "file.npz")


def test_broken_files_are_refused(tmp_path):
    save_moments(tmp_path / "file.npz", Moments(np.zeros(2), np.eye(2)), {})
    whole = (tmp_path / "file.npz").read_bytes()
    (tmp_path / "file.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected an \.npz"):
        load_moments(tmp_path / "file.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_moments(tmp_path / "none.npz")


# Its standard error.


@pytest.mark.parametrize(("n", "dead"), [(6, 0), (12, 0), (13, 0), (14, 0), (30, 0), (30, 3)])
def test_leaving_out_each_row_is_exact(n, dead):
    rows = (normal(n, n, 12) * np.arange(1, 13) ** -0.5).astype(np.float64)
    rows[:, :dead] = 0.5  # features that never change
    base = moments(normal(1, 50, 12))
    expected = [frechet_distance(moments(np.delete(rows, i, 0)), base) for i in range(n)]
    found = leave_one_out(Parts(rows, 8), moments(rows), base, block=8)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_standard_error_of_a_frechet_distance_is_its_spread():
    """Over 200 sets of 60 rows."""
    base = moments(normal(0, 500, 6))
    found = [frechet_estimate(normal(i, 60, 6) * 1.2, base) for i in range(1, 201)]
    spread = np.std([estimate.value for estimate in found])
    error = np.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    assert 0.9 * spread < error < 1.4 * spread


def test_the_standard_error_is_the_jackknifes():
    rows, base = normal(0, 9, 3), moments(normal(1, 50, 3))
    without = np.array([frechet_distance(moments(np.delete(rows, i, 0)), base) for i in range(9)])
    expected = np.sqrt(8 / 9 * np.sum((without - without.mean()) ** 2))
    assert frechet_estimate(rows, base).standard_error == pytest.approx(expected, rel=1e-5)


def test_rows_that_are_all_the_same_have_no_spread():
    estimate = frechet_estimate(np.ones((5, 3), np.float32), Moments(np.ones(3), np.eye(3)))
    assert (estimate.value, estimate.standard_error) == (pytest.approx(3.0), pytest.approx(0.0, abs=1e-9))


@pytest.mark.slow
@pytest.mark.parametrize("n", [24, 48, 96, 320])
def test_intervals_cover_the_mean_frechet_distance(n):
    """Rows with d = 32, 300 sets of them; the mean is that of 3,000 sets."""
    d = 32
    rng = np.random.default_rng(n)
    stds = np.arange(1, d + 1) ** -0.5
    base = Moments(np.zeros(d), np.diag(stds**2))

    def made():
        return rng.normal(size=(n, d)) * stds * 1.2 + 0.1 / np.sqrt(d)

    mean = np.mean([frechet_distance(moments(made()), base) for _ in range(3000)])
    covers = []
    for _ in range(300):
        low, high = frechet_estimate(made(), base).interval()
        covers.append(low < mean < high)
    assert np.mean(covers) > 0.91


def test_copies_are_seen_where_held_out_images_have_copies_too():
    found = memorisation(np.zeros(20), np.concatenate([np.zeros(5), np.ones(95)]), 0.02)
    assert (found.threshold, found.fraction) == (0, 1)


def test_memorisation_by_hand():
    """Of four samples two are strictly below the second of nine held-out distances; p = 2 / 10."""
    found = memorisation(np.array([0.1, 0.15, 0.2, 0.9]), np.arange(1, 10) / 10, 0.2)
    assert found[:3] == pytest.approx((0.5, 0.25, 0.2))
    assert found.threshold == pytest.approx(0.2)
    assert found.expected_spread == pytest.approx(np.sqrt(0.2 * 0.8 * (10 / 4 + 1) / 11))
    assert memorisation(np.ones(3), np.ones(20), 0.12).expected == pytest.approx(3 / 21)  # 0.12 x 21 = 2.52


# The kernel distance.


def test_mmd2_is_the_sum_in_full():
    x, y = normal(0, 20, 5).astype(np.float64), 0.5 + normal(1, 20, 5).astype(np.float64)
    for of in (Polynomial(), Polynomial(degree=2, gamma=0.5, coef0=0.0)):
        xx, yy, xy = ((of.gamma or 0.2) * a @ b.T + of.coef0 for a, b in ((x, x), (y, y), (x, y)))
        off = 1 - np.eye(20)
        expected = ((off * xx**of.degree).sum() + (off * yy**of.degree).sum()) / 380
        assert mmd2(x, y, of).value == pytest.approx(expected - 2 * (xy**of.degree).mean(), rel=1e-9)


LINEAR = Polynomial(degree=1, gamma=1.0, coef0=0.0)


@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
def test_the_parts_of_the_variance_are_those_of_normal_rows(shift):
    """With k(x, y) = x . y and rows of covariances C_x and C_y: shift C shift, tr C_x^2, tr C_y^2, tr C_x C_y."""
    rng, stds = np.random.default_rng(0), (np.array([1.0, 0.5, 2.0]), np.array([0.3, 1.0, 1.5]))
    found = [
        mmd2(shift + rng.normal(size=(12, 3)) * stds[0], rng.normal(size=(12, 3)) * stds[1], LINEAR) for _ in range(400)
    ]
    cov = [std**2 for std in stds]
    expected = [*(shift**2 * c.sum() for c in cov), *(c @ c for c in cov), cov[0] @ cov[1]]
    components = np.array([part.components for part in found])
    error = components.std(0) / np.sqrt(len(found))
    assert np.all(np.abs(components.mean(0) - expected) < 4 * error)
    assert np.all(error[2:] < 0.1 * np.array(expected[2:]))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_variance_of_all_rows_is_made_of_its_parts(shift):
    """With k(x, y) = x . y: over 100,000 draws of 5 and 8 rows in the plane."""
    rng, stds = np.random.default_rng(0), (np.array([1.0, 0.5]), np.array([0.3, 1.0]))
    x, y = (rng.normal(size=(100_000, n, 2)) * std for n, std in zip((5, 8), stds, strict=True))
    x += shift

    def within(rows):
        return ((rows.sum(1) ** 2).sum(1) - (rows**2).sum((1, 2))) / (rows.shape[1] * (rows.shape[1] - 1))

    values = within(x) + within(y) - 2 * (x.mean(1) * y.mean(1)).sum(1)
    cov = [std**2 for std in stds]
    parts = [*(shift**2 * c.sum() for c in cov), *(c @ c for c in cov), cov[0] @ cov[1]]
    assert _variance(np.array(parts), 5, 8) == pytest.approx(values.var(), rel=0.03)
    assert abs(values.mean() - 2 * shift**2) < 4 * values.std() / np.sqrt(len(values))


def test_the_standard_error_has_that_of_the_rows_and_that_of_the_subsets(monkeypatch):
    x, y = normal(0, 40, 3), 0.4 + normal(1, 40, 3)
    whole, parts = kernel_distance(x, y, 2, 40), kernel_distance(x, y, 9, 10)
    assert whole.subsets.std() < 1e-9 * whole.value  # all rows in each
    of_subsets = parts.subsets.var(ddof=1) / 9 * 8 / 6
    assert parts.standard_error**2 > of_subsets > 0.1 * parts.standard_error**2
    many = kernel_distance(x, y, 200, 10)
    assert many.standard_error == pytest.approx(whole.standard_error, rel=0.35)
    monkeypatch.setattr(kernel, "_variance", lambda *_: 0.0)
    assert kernel_distance(x, y, 9, 10).standard_error == pytest.approx(np.sqrt(of_subsets), rel=1e-12)


def test_strata_make_the_standard_error_smaller():
    """The spread between the clusters is no chance then; over pairs of sets it is the distance's spread."""
    rng, found = np.random.default_rng(0), []
    for i in range(40):
        (x, of_x), (y, of_y) = clusters(rng, 80, True), clusters(rng, 80, True)
        strata = {"x_strata": of_x, "y_strata": of_y}
        found.append((kernel_distance(x, y, 4, 80, seed=i, **strata), kernel_distance(x, y, 4, 80, seed=i)))
    errors, plain = ([estimate.standard_error for estimate in column] for column in zip(*found, strict=True))
    spread = np.std([estimate.value for estimate, _ in found])
    assert 0.9 * spread < np.sqrt(np.mean(np.square(errors))) < 1.6 * spread
    assert np.mean(plain) > 2 * spread


@pytest.mark.parametrize(("shift", "subsets", "size"), [(0.0, 10, 12), (0.4, 10, 12), (0.0, 2, 24)])
def test_the_standard_error_of_a_kernel_distance_is_its_spread(shift, subsets, size):
    """Over 60 pairs of small sets; with and without a difference, subsets that overlap, and all rows in each."""
    found = [
        kernel_distance(normal(2 * i, 24, 3), shift + normal(2 * i + 1, 30, 3), subsets, size, seed=i)
        for i in range(60)
    ]
    spread = np.std([estimate.value for estimate in found])
    error = np.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    assert 0.9 * spread < error < 1.5 * spread
    assert min(estimate.standard_error for estimate in found) > 0.1 * spread
    if shift == 0:
        assert abs(np.mean([estimate.value for estimate in found])) < 4 * spread / np.sqrt(60)


def clusters(rng, count, balanced, shift=0.0):
    """(rows [count, 16], classes [count]) of ten clusters, whose classes are random or in turn."""
    means = np.random.default_rng(1234).normal(size=(10, 16))
    classes = np.arange(count) % 10 if balanced else rng.integers(0, 10, count)
    return (shift + means[classes] + 0.5 * rng.normal(size=(count, 16))).astype(np.float32), classes


@pytest.mark.parametrize(("counts", "size"), [((40, 60), 30), ((240, 300), 200)], ids=["rare", "20 of each class"])
def test_class_balanced_rows_are_unbiased_with_their_strata_alone(counts, size):
    """Of each set; pairs of one class are too rare else, and the distance of equal laws is negative."""
    rng, plain, known = np.random.default_rng(0), [], []
    for i in range(40):
        (x, of_x), (y, of_y) = (clusters(rng, count, True) for count in counts)
        plain.append(kernel_distance(x, y, 2, size, seed=i).value)
        known.append(kernel_distance(x, y, 2, size, seed=i, x_strata=of_x, y_strata=of_y).value)
    error = np.std(known) / np.sqrt(len(known))
    assert abs(np.mean(known)) < 4 * error
    assert np.mean(plain) < -6 * error


def test_strata_that_hold_no_two_rows_are_one():
    """The distance is that without them; their names do not matter, nor the order of the rows."""
    x, y = normal(0, 24, 3), normal(1, 24, 3)
    assert kernel_distance(x, y, 2, x_strata=np.arange(24)).value == pytest.approx(kernel_distance(x, y, 2).value)
    strata = np.arange(24) % 3
    one = kernel_distance(x, y, 2, x_strata=strata)
    other = kernel_distance(x[::-1], y, 2, x_strata=100 - 7 * strata[::-1])
    assert one.value == pytest.approx(other.value)
    assert one.value != pytest.approx(kernel_distance(x, y, 2).value)


def test_rows_in_the_order_of_their_classes_have_the_same_standard_error():
    rng = np.random.default_rng(0)
    (x, classes), (y, _) = clusters(rng, 200, False), clusters(rng, 200, False)
    mixed, in_order = (kernel_distance(rows, y, 2).standard_error for rows in (x, x[np.argsort(classes)]))
    assert in_order == pytest.approx(mixed, rel=0.2)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 3e3, 1e4, 1e6, 1e15])
def test_the_kernel_distance_of_large_and_small_features_is_that_of_others_scaled(scale):
    x, y, of = normal(0, 24, 3), 0.4 + normal(1, 30, 3), Polynomial(coef0=0.0)
    one, other = (kernel_distance(f * x, f * y, 3, 12, of) for f in (1.0, np.float32(scale)))
    found = np.array([other.value, other.standard_error]) / np.float64(np.float32(scale)) ** 6
    np.testing.assert_allclose(found, [one.value, one.standard_error], rtol=1e-4)
    assert np.isfinite(kernel_distance(scale * x, scale * y, 3, 12).standard_error)


def test_features_whose_kernels_overflow_are_refused():
    with pytest.raises(ValueError, match=r"the largest feature is \d.*e\+37; expected smaller numbers"):
        kernel_distance(normal(0, 24, 3) * np.float32(1e37), normal(1, 24, 3), 2)


@pytest.mark.parametrize("place", [0, 1])
def test_a_row_that_no_subset_draws_is_checked_too(place):
    sets = [normal(0, 200, 3), normal(1, 200, 3)]
    for row in range(0, 200, 40):
        sets[place][row] = np.nan
        with pytest.raises(ValueError, match=rf"{'xy'[place]}\[{row}\] is nan; expected finite numbers"):
            kernel_distance(*sets, subsets=2, subset_size=4)
        sets[place][row] = 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("balanced", "shift"), [(False, 0.0), (True, 0.0), (False, 0.03), (True, 0.1)])
def test_intervals_cover_the_squared_mmd(balanced, shift):
    """Ten clusters: 200 pairs of sets of equal laws, whose MMD^2 is 0, or 100 of others, whose MMD^2 is the mean."""
    found = []
    for i in range(100 if shift else 200):
        rng = np.random.default_rng(i)
        (x, of_x), (y, of_y) = clusters(rng, 300, balanced, shift), clusters(rng, 1440, balanced)
        strata = {"x_strata": of_x, "y_strata": of_y} if balanced else {}
        found.append(kernel_distance(x, y, 10, 1000, seed=i, **strata))
    values, errors = np.array([(estimate.value, estimate.standard_error) for estimate in found]).T
    misses = np.abs(values - (values.mean() if shift else 0.0)) / errors
    assert np.mean(misses > 1.96) <= 0.08
    assert np.mean(misses > 3) <= 0.01


# Neighbours, manifolds, copies.


@pytest.mark.parametrize("offset", [0.0, 3e4])
def test_neighbours_are_those_of_all_distances(offset):
    a, b = normal(0, 48, 6) + np.float32(offset), normal(1, 70, 6) + np.float32(offset)
    b[7], b[60] = a[3], a[3]
    distances = all_distances(a, b)
    for block in (24, 1000):
        found = neighbours(Parts(a, 1000), Parts(b, 1000), 3, block=block)
        np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :3], rtol=1e-12)
        np.testing.assert_array_equal(np.take_along_axis(distances, found.indices, 1), found.distances)
    assert set(found.indices[3, :2]) == {7, 60}
    assert list(found.distances[3, :2]) == [0, 0]


def test_a_row_is_not_its_own_neighbour_but_its_copy_is():
    rows = normal(0, 40, 4)
    rows[30] = rows[2]
    distances = all_distances(rows, rows) + np.diag(np.full(40, np.inf))
    for k, block in ((1, 1000), (39, 20)):
        found = neighbours(rows, rows, k, exclude_self=True, block=block)
        np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :k], rtol=1e-12)
    assert neighbours(rows, rows, 1, exclude_self=True).indices[2] == 30


@pytest.mark.parametrize("block", [12, 1000])
def test_neighbours_that_float32_cannot_tell_apart_are_found_by_differences(block):
    """Corners of a simplex, all equally far but for 1e-9 of it."""
    rows = np.eye(48) * (1 + 1e-9 * np.random.default_rng(0).permutation(48))[:, None]
    distances = all_distances(rows, rows) + np.diag(np.full(48, np.inf))
    found = neighbours(rows, rows, 3, exclude_self=True, block=block)
    np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :3], rtol=1e-14)
    np.testing.assert_array_equal(np.take_along_axis(distances, found.indices, 1), found.distances)


def lattice(seed, n):
    """Whole numbers, of which many pairs are equally far."""
    return np.random.default_rng(seed).integers(0, 4, (n, 3)).astype(np.float32)


@pytest.mark.parametrize("block", [30, 1000])
def test_manifolds_are_exact_where_many_distances_are_equal(block):
    x, y, k = lattice(0, 60), 1 + lattice(1, 60), 5
    across = all_distances(x, y)
    r, s = (np.sort(all_distances(rows, rows), 1)[:, k] for rows in (x, y))
    in_x, in_y = across < r[:, None], across < s
    expected = in_x.any(0).mean(), in_y.any(1).mean(), in_x.sum(0).mean() / k, in_x.any(1).mean()
    assert manifold(Parts(y, 60), Parts(x, 60), k, block) == pytest.approx(expected, abs=1e-15)


def test_a_set_is_its_own_manifold():
    rows = normal(0, 60, 3)
    assert manifold(rows, rows, 5) == pytest.approx((1.0, 1.0, 1.0, 1.0), abs=1e-15)
    assert manifold(rows[::-1], rows, 5) == pytest.approx((1.0, 1.0, 1.0, 1.0), abs=1e-15)
    assert manifold(rows + 100, rows, 5) == (0.0, 0.0, 0.0, 0.0)
    same = np.ones((10, 3), np.float32)
    assert manifold(same, same, 5) == (0.0, 0.0, 0.0, 0.0)  # balls of radius 0 hold nothing


def test_copies_of_training_images_are_found():
    train, held_out, samples = normal(0, 60, 4), normal(1, 50, 4), normal(2, 50, 4)
    samples[::5] = train[:10]  # a fifth of them
    near = [neighbours(rows, train).distances[:, 0] for rows in (held_out, samples)]
    found = memorisation(near[1], near[0], quantile=0.02)
    assert 0.2 <= found.fraction < 0.4
    assert found.expected == pytest.approx(1 / 51)
    assert found.fraction > found.expected + 4 * found.expected_spread


def test_the_memorised_fraction_is_as_expected_where_nothing_is():
    """Over 500 draws, of any distribution."""
    rng = np.random.default_rng(0)
    found = [memorisation(rng.exponential(size=80), rng.exponential(size=120), 0.05) for _ in range(500)]
    assert found[0].expected == 6 / 121
    fractions = [value.fraction for value in found]
    assert np.mean(fractions) == pytest.approx(6 / 121, abs=5 * found[0].expected_spread / np.sqrt(500))
    assert np.std(fractions) == pytest.approx(found[0].expected_spread, rel=0.12)


# The Inception Score.


def test_the_inception_score_of_what_is_known():
    assert inception_score(np.zeros((20, 5), np.float32)).value == pytest.approx(1.0)
    sure = np.tile(1000.0 * np.eye(5, dtype=np.float32), (20, 1))  # each class in turn
    assert inception_score(sure, shuffle_seed=None).value == pytest.approx(5.0)
    assert inception_score(sure[:50], 1).spread == 0


def test_the_inception_score_does_not_depend_on_blocks():
    logits = 3 * normal(0, 103, 7)
    assert inception_score(Parts(logits, 10), block=10).value == pytest.approx(inception_score(logits).value, rel=1e-12)


# The sliced Wasserstein distance.


def test_a_shift_is_at_its_length_over_the_root_of_the_width(key):
    rows, shift = normal(0, 40, 5), np.array([3, 0, 4, 0, 0], np.float32)
    found = sliced_wasserstein(key, rows + shift, rows, directions=512, group=512)
    assert abs(found.value - 5 / np.sqrt(5)) < 4 * found.standard_error
    assert found.standard_error < 0.1
    exact = np.sqrt(np.mean((np.asarray(unit_directions(key, 0, 512, 5)) @ shift) ** 2))
    assert found.value == pytest.approx(exact, rel=1e-5)


def test_sets_of_other_sizes_are_as_by_scipy(key):
    a, b = normal(0, 12, 5), 1 + normal(1, 18, 5)
    theta = np.asarray(unit_directions(key, 0, 8, 5))
    lines, sorted_lines = (a @ theta.T, b @ theta.T), [np.sort(rows @ theta.T, 0).T for rows in (a, b)]
    expected = [scipy.stats.wasserstein_distance(lines[0][:, i], lines[1][:, i]) for i in range(8)]
    np.testing.assert_allclose(wasserstein(*sorted_lines, merged_steps(12, 18), 1.0), expected, rtol=1e-5)
    one = sliced_wasserstein(key, Parts(a, 6), Parts(b, 6), p=1.0, directions=8, group=4, block=6)
    assert one.value == pytest.approx(np.mean(expected), rel=1e-5)
    # Sets repeated are the same distributions: W_p of 12 and 18 rows is that of 36 and 36.
    repeated = [np.repeat(x, n, 1) for x, n in zip(sorted_lines, (3, 2), strict=True)]
    repeated = wasserstein(*repeated, merged_steps(36, 36), 2.0)
    np.testing.assert_allclose(wasserstein(*sorted_lines, merged_steps(12, 18), 2.0), repeated, rtol=1e-12)


def test_order_does_not_matter_and_equal_sets_are_at_0(key):
    rows = 50 + normal(0, 40, 5)
    assert sliced_wasserstein(key, rows[::-1], rows, directions=8) == Estimate(0.0, 0.0)


# What no metric can use.

GOOD = normal(0, 20, 3)
METRICS = {
    "moments": lambda rows: moments(rows),
    "frechet_estimate": lambda rows: frechet_estimate(rows, Moments(np.zeros(3), np.eye(3))),
    "kernel": lambda rows: kernel_distance(rows, GOOD, 2),
    "kernel, second": lambda rows: kernel_distance(GOOD, rows, 2),
    "manifold": lambda rows: manifold(rows, GOOD, 2),
    "manifold, second": lambda rows: manifold(GOOD, rows, 2),
    "neighbours": lambda rows: neighbours(rows, GOOD),
    "inception_score": lambda rows: inception_score(rows, 2),
    "sliced": lambda rows: sliced_wasserstein(jax.random.key(0), rows, GOOD, directions=2),
}


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_cannot_be_used_are_refused(metric, unchecked):
    broken = GOOD.copy()
    broken[11, 1] = np.inf
    with pytest.raises(ValueError, match=r"\w+\[11\] is inf; expected finite numbers"):
        METRICS[metric](broken)
    for rows in (GOOD[:0], GOOD[0], GOOD[None]):
        with pytest.raises(ValueError, match=r"the shape of \w+ is .*; expected \[n, d\] with n >= \d and d >= 1"):
            METRICS[metric](rows)
    if metric not in ("moments", "inception_score"):
        with pytest.raises(ValueError, match=r"the width of \w+ is \d; expected \d, that of \w+"):
            METRICS[metric](GOOD[:, :2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: moments(GOOD[:1]), r"the shape of features is \(1, 3\); expected \[n, d\] with n >= 2"),
        (lambda: frechet_distance(moments(GOOD), moments(GOOD[:, :2])), "features of sizes 3 and 2"),
        (lambda: kernel_distance(GOOD[:3], GOOD), "n >= 4"),
        (
            lambda: kernel_distance(GOOD, GOOD, x_strata=[0, 1]),
            r"x_strata is 'int64 \(2,\)'; expected",
        ),
        (lambda: kernel_distance(GOOD, GOOD, y_strata=np.ones(20)), "y_strata is 'float64"),
        (lambda: kernel_distance(GOOD, GOOD, subsets=1), "subsets is 1; expected a whole number, at least 2"),
        (lambda: Polynomial(gamma=0.0), "gamma is 0.0; expected a number above 0"),
        (lambda: manifold(GOOD, GOOD[:5], 5), "k is 5; expected less than 5"),
        (lambda: neighbours(GOOD, GOOD, 21), "k is 21; expected at most 20: b has 20 rows"),
        (lambda: neighbours(GOOD, GOOD, 20, exclude_self=True), "expected at most 19"),
        (lambda: inception_score(GOOD[:5]), r"\(5, 3\); expected \[n, d\] with n >= 10"),
        (lambda: sliced_wasserstein(jax.random.key(0), GOOD, GOOD, p=0.5), "p is 0.5; expected 1 or more"),
        (lambda: memorisation(np.ones(3), np.ones(3), 1.0), "quantile is 1.0; expected a number between 0 and 1"),
        (lambda: memorisation(np.ones(3), np.array([np.nan])), "held_out_distances is nan; expected finite, 0 or more"),
        (lambda: Estimate(1.0, 0.1).interval(95), "level is 95; expected a number between 0 and 1"),
        (lambda: moments(GOOD, block=0), "block is 0; expected a whole number, at least 1"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message, unchecked):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_arrays_memory_maps_and_parts_are_rows(tmp_path):
    np.save(tmp_path / "rows.npy", GOOD)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert all(isinstance(rows, Rows) for rows in (GOOD, mapped, Parts(GOOD, 1)))
    np.testing.assert_array_equal(moments(mapped).cov, moments(GOOD).cov)
    assert json.dumps(manifold(mapped, GOOD + 1, 2))  # plain numbers


def test_power_of_white_noise_is_flat_and_that_of_a_wave_is_at_its_frequency():
    noise = np.random.default_rng(0).normal(size=(400, 16, 16, 1)).astype(np.float32) * 0.5
    frequency, power = power_spectrum(noise)
    np.testing.assert_array_equal(frequency, np.arange(9))
    np.testing.assert_allclose(power, 0.25, rtol=0.25)
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)[None, :, None, None] * np.ones((1, 16, 16, 2), np.float32)
    power = np.array(power_spectrum(wave.astype(np.float32)).power)
    assert power[3] > 1
    power[3] = 0
    np.testing.assert_allclose(power, 0, atol=1e-9)


def test_power_keeps_the_sum_of_squares():
    """Parseval: a field without its corners' frequencies has all of its squares in the rings."""
    image = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    spectrum = np.fft.fft2(image, axes=(1, 2))
    ring = rings(8).reshape(8, 8)
    image = np.fft.ifft2(np.where((ring <= 4)[:, :, None], spectrum, 0), axes=(1, 2)).real.astype(np.float32)
    power = power_spectrum(image, each=True).power
    counts = np.bincount(ring.reshape(-1))[:5]
    np.testing.assert_allclose((power * counts).sum(1), (image**2).sum((1, 2, 3)), rtol=1e-5)


def test_rings_are_of_the_nearest_whole_frequency():
    waves = np.fft.fftfreq(18, 1 / 18)
    for ring, u, v in zip(rings(18), np.repeat(waves, 18), np.tile(waves, 18), strict=True):
        assert (ring - 0.5) ** 2 <= u * u + v * v < (ring + 0.5) ** 2 or ring == u == v == 0


def test_power_of_an_oblong_image_is_refused():
    with pytest.raises(ValueError, match="square"):
        power_spectrum(np.zeros((1, 8, 6, 1), np.float32))
