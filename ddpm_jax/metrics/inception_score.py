"""The Inception Score (Salimans et al. 2016, 1606.03498): whether images are recognisable and of many classes.

    IS = exp( mean_i KL( p(.|x_i) || q ) ),    q = mean_i p(.|x_i),    p = softmax(logits)

in each of a few splits of the images.  One pass suffices, since

    mean_i KL( p(.|x_i) || q ) = mean_i sum_c p_ic log p_ic  -  sum_c q_c log q_c.

It lies between 1 and the number of classes, ignores the data, and rises with the number of images in a split.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require, require_int
from ddpm_jax.metrics.feature_rows import blocks, width

__all__ = ["InceptionScore", "inception_score"]


class InceptionScore(NamedTuple):
    """The mean of the scores of the splits, and their standard deviation: the spread of the score of *one* split."""

    value: float
    spread: float
    splits: Float64[np.ndarray, " S"]


def inception_score(
    logits: Rows, splits: int = 10, shuffle_seed: int | None = 2020, block: int = 4096
) -> InceptionScore:
    """The Inception Score.

    Args:
        logits: rows [n, classes], n >= splits.
        splits: the number of splits.
        shuffle_seed: the seed that assigns rows to splits, as in torch-fidelity; None: splits are consecutive rows.
        block: rows read at a time.

    Returns:
        The mean, the spread and the score of each split.

    Raises:
        ValueError: there are fewer than 2 classes or fewer rows than splits, or a row is not finite.
    """
    require_int("splits", splits, 1)
    classes, n = width("logits", logits, least=splits), len(logits)
    require("the classes of logits", classes, classes >= 2, "2 or more")
    split = np.empty(n, np.int32)
    order = np.arange(n) if shuffle_seed is None else np.random.RandomState(shuffle_seed).permutation(n)
    for i in range(splits):
        split[order[i * n // splits : (i + 1) * n // splits]] = i
    count, negentropy, total = np.bincount(split, minlength=splits), np.zeros(splits), np.zeros((splits, classes))
    for start, rows in blocks("logits", logits, block):
        log_p = rows.astype(np.float64) - rows.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p, own = np.exp(log_p), split[start : start + len(rows)]
        negentropy += np.bincount(own, (p * log_p).sum(1), splits)
        total += (own == np.arange(splits)[:, None]).astype(np.float64) @ p
    q = total / count[:, None]
    log_q = np.log(np.where(q > 0, q, 1.0))
    scores = np.exp(negentropy / count - (q * log_q).sum(1))
    return InceptionScore(float(scores.mean()), float(scores.std()), scores)
