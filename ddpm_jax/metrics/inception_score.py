"""The Inception Score (Salimans et al. 2016, 1606.03498): are images recognisable, and of many classes?

    IS = exp( mean_i KL( p(.|x_i) || q ) ),    q = mean_i p(.|x_i),    p = softmax(logits)

in each of a few splits of the images, and in one pass, since

    mean_i KL( p(.|x_i) || q ) = mean_i sum_c p_ic log p_ic  -  sum_c q_c log q_c.

It lies between 1 and the number of classes, knows nothing of the data, and rises with the images in a split.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require, require_int
from ddpm_jax.metrics.feature_rows import blocks, width


class InceptionScore(NamedTuple):
    """The mean of the splits' scores, and their standard deviation: how far the score of *one* split goes."""

    value: float
    spread: float
    splits: Float64[np.ndarray, " S"]


def inception_score(
    logits: Rows, splits: int = 10, shuffle_seed: int | None = 2020, block: int = 4096
) -> InceptionScore:
    """The score of logits [n, classes], n >= splits.

    Splits hold the same rows as torch-fidelity's for the same seed; with None, they are runs of rows in order.
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
