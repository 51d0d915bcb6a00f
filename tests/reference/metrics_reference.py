"""The metrics held against independent implementations: torch-fidelity, prdc and SciPy, on the same features.

    pip install -e . torch torchvision torch-fidelity prdc scipy
    python tests/reference/metrics_reference.py          # a few minutes on two CPU cores

writes tests/reference/metrics.npz, what these make of a few small sets of features, and prints how far ours are from
them, there and for 2048 features.  Expect relative differences of 1e-14 for the Inception Score, 1e-7 for the Frechet
distance (1e-14 where no covariance is singular) and for the kernel distance (1e-4 where the origin is far), and none
for the rest.

    torch-fidelity    Frechet distance, kernel distance subset by subset, Inception Score, precision and recall (k = 3)
    prdc              precision, recall, density, coverage (k = 5)
    scipy             the root of an ill-conditioned product of covariances

The features are a function of the case's name (`features`), so the test makes them without any of these.
torch-fidelity is given float64, so that the differences are those of our float32.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from diffusers_reference import numbers

from ddpm_jax.metrics.frechet import Moments, frechet_distance, moments
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.kernel import kernel_distance
from ddpm_jax.metrics.manifold import manifold

REFERENCE = Path(__file__).parent / "metrics.npz"


class Case(NamedTuple):
    """Two sets of features: how many, how wide, and how they differ."""

    samples: int
    reference: int
    width: int
    decay: float
    """Feature i has the standard deviation (i + 1)^-decay."""
    shift: float = 0.1
    scale: float = 1.1
    offset: float = 0.0
    """Of all features, in both sets."""


# Stored, and compared again by the tests.  "few": fewer rows than features.  "far": an origin far from all rows.
CASES = {
    "plain": Case(240, 300, 16, 0.5),
    "few": Case(40, 60, 64, 0.5, shift=0.0),
    "steep": Case(240, 300, 16, 3.0, shift=0.0),
    "far": Case(240, 300, 16, 0.0, shift=0.3, offset=1000.0),
}
# Compared here only.
LARGE = {"large": Case(3000, 2500, 2048, 0.4, 0.01, 1.0), "large-few": Case(1000, 1200, 2048, 0.4, 0.0, 1.0)}
SUBSETS, LOGITS, CLASSES, SPLITS = 10, 1003, 20, 10


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(samples, reference) of a case: float32 [n, width], its directions mixed."""
    case = (CASES | LARGE)[name]
    stds = np.arange(1, case.width + 1, dtype=np.float64) ** -case.decay
    mix = np.linalg.qr(numbers(f"{name}/mix", (case.width, case.width)).astype(np.float64))[0]
    samples = case.shift + case.scale * numbers(f"{name}/samples", (case.samples, case.width)) * stds
    reference = numbers(f"{name}/reference", (case.reference, case.width)) * stds
    return (samples @ mix + case.offset).astype(np.float32), (reference @ mix + case.offset).astype(np.float32)


def logits() -> np.ndarray:
    """float32 [LOGITS, CLASSES], some of them sure of their class to the last digit."""
    return 4 * numbers("logits", (LOGITS, CLASSES)) * np.where(np.arange(LOGITS) % 7 == 0, 30, 1)[:, None].astype("f4")


def ill_conditioned() -> tuple[Moments, Moments]:
    """Covariances of 60 features whose eigenvalues fall from 1 to 1e-12, along other axes."""
    covs = []
    for name in "ab":
        axes = np.linalg.qr(numbers(f"ill/{name}", (60, 60)).astype(np.float64))[0]
        covs.append((axes * np.logspace(0, -12, 60)) @ axes.T)
    return Moments(np.zeros(60), covs[0]), Moments(np.full(60, 0.01), covs[1])


def subset_size(name: str) -> int:
    """Half of the smaller set, at most torch-fidelity's default."""
    case = (CASES | LARGE)[name]
    return min(case.samples, case.reference, 2000) // 2


def ours(name: str) -> dict[str, np.ndarray]:
    """What our metrics make of a case, under the names of `theirs`."""
    a, b = features(name)
    kernel = kernel_distance(a, b, SUBSETS, subset_size(name))
    return {
        "frechet": np.array(frechet_distance(moments(a), moments(b))),
        "kernel": np.array([kernel.value, kernel.spread]),
        "subsets": kernel.subsets,
        "prdc": np.array(manifold(a, b, k=5)),
        "precision_recall": np.array(manifold(a, b, k=3)[:2]),
    }


def theirs(name: str) -> dict[str, np.ndarray]:
    """What torch-fidelity and prdc make of a case."""
    import prdc  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from torch_fidelity import metric_fid, metric_kid, metric_prc  # pyright: ignore[reportMissingImports]

    a, b = features(name)
    double = [torch.from_numpy(rows.astype(np.float64)) for rows in (a, b)]
    statistics = [metric_fid.fid_features_to_statistics(rows) for rows in double]
    kid = {"kid_subsets": SUBSETS, "kid_subset_size": subset_size(name), "verbose": False}
    seen: list[float] = []
    original = metric_kid.kernel_mmd
    metric_kid.kernel_mmd = lambda *rows, **options: seen.append(original(*rows, **options)) or seen[-1]
    kernel = metric_kid.kid_features_to_metric(*double, **kid)
    metric_kid.kernel_mmd = original
    manifolds = prdc.compute_prdc(b, a, nearest_k=5)
    pair = metric_prc.prc_features_to_metric(*double, prc_neighborhood=3, verbose=False)
    return {
        "frechet": np.array(metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]),
        "kernel": np.array([kernel[f"kernel_inception_distance_{key}"] for key in ("mean", "std")]),
        "subsets": np.array(seen),
        "prdc": np.array([manifolds[key] for key in ("precision", "recall", "density", "coverage")]),
        "precision_recall": np.array([pair["precision"], pair["recall"]]),
    }


def our_score() -> np.ndarray:
    """The Inception Score and its spread, without and with torch-fidelity's shuffling."""
    scores = [inception_score(logits(), SPLITS, seed) for seed in (None, 2020)]
    return np.array([(score.value, score.spread) for score in scores])


def their_score() -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    from torch_fidelity import metric_isc  # pyright: ignore[reportMissingImports]

    values = torch.from_numpy(logits())
    scores = [metric_isc.isc_features_to_metric(values, SPLITS, shuffle) for shuffle in (False, True)]
    return np.array([[score[f"inception_score_{key}"] for key in ("mean", "std")] for score in scores])


def their_root() -> np.ndarray:
    """The Frechet distance of the ill-conditioned covariances, by SciPy's root of a matrix."""
    import scipy.linalg

    a, b = ill_conditioned()
    trace = np.trace(np.real(np.asarray(scipy.linalg.sqrtm(a.cov @ b.cov))))
    return np.array(np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * trace)


def stored() -> dict[str, Any]:
    """What the others made of every case, from the file: "CASE/NAME"."""
    with np.load(REFERENCE) as file:
        return {name: file[name] for name in file.files}


def compare(name: str, our: np.ndarray, their: np.ndarray) -> None:
    difference = np.abs(our - their).max()
    relative = difference / max(np.abs(their).max(), 1e-300)
    print(f"{name}: {their.ravel()[0]:.9g}, largest difference {difference:.1e} ({relative:.1e})")


def main() -> None:
    """Compare every case, and store what the others make of it."""
    results: dict[str, Any] = {"score": their_score(), "ill": their_root()}
    compare("Inception Score", our_score(), results["score"])
    compare("ill-conditioned", np.array(frechet_distance(*ill_conditioned())), results["ill"])
    for case in (*CASES, *LARGE):
        start = time.perf_counter()
        our = ours(case)
        print(f"{case}: ours took {time.perf_counter() - start:.0f} s")
        for name, their in theirs(case).items():
            compare(f"{case} {name}", our[name], their)
            if case in CASES:
                results[f"{case}/{name}"] = their
    np.savez(REFERENCE, **results)
    print(f"wrote {REFERENCE} ({REFERENCE.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
