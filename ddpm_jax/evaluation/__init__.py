"""What is reported?  Scores of a trained run, with every condition that they depend on.

    python scripts/train_features.py experiments/digits.py --output runs/features/digits.safetensors
    ddpm-jax evaluate runs/digits --num-samples 1000 --features runs/features/digits.safetensors --bound-terms 20

The command draws samples over all devices, scores them, and writes `runs/digits/evaluations/*/report.json` and
`report.html`.  The page holds the pictures, the curves and all conditions: the number of samples, the split and the
number of images that they are compared with, pixels and resizing, the features and the hash of their weights, sampler
and steps, average, seed and commit.

In Python the same is `evaluation.evaluate.evaluate(run, folder, extractor, Evaluation(num_samples=1000))`.

Intermediate results are kept in shards.  An evaluation that is killed and started again resumes, and ends with the
same file, byte for byte.  A larger number of samples draws only those that are missing.  Memory does not grow with
the number.

| `--metrics` | score |
|---|---|
| `fid` | Frechet distance, with a 95% interval. It is called FID only in the features of Inception with its published weights and with 10,000 samples or more; otherwise `FD-1k` |
| `kid` | kernel distance, unbiased, with a standard error |
| `pr` | precision and recall, density and coverage |
| `nn` | nearest training images: as a picture, and the share of samples that are closer to one than held-out images are |
| `is`, `swd` | Inception score; sliced Wasserstein distance |
| `bpd` | bits/dim: the bound of every held-out image; `--bound-terms 20` draws 20 of its terms for each, without bias |

Samples of a class-conditional run get random labels, as frequent as in the reference (or in the training data, if the
reference has no labels), so they are independent.  `--labels balanced` draws all classes in turn.  Only bits/dim
needs labels of the reference.

The report shows each score beside the score of real held-out images (the split called test, or `--held-out`).  No
model can be expected to do better than these.

## MNIST on two CPU cores

`python experiments/mnist_cpu.py` (14,000 steps of 32 images; about 45 minutes on two quiet cores, 64 minutes of CPU),
then the classifier of `scripts/train_features.py experiments/mnist.py` (99.2% of the test split, under 2 minutes) and

    ddpm-jax evaluate runs/mnist_cpu --num-samples 10000 --features runs/features/mnist.safetensors \\
        --metrics fid,kid,pr,nn,is,swd,bpd --bound-terms 20

took 13 minutes and gave the numbers below, with 20 network evaluations per image (DPM-Solver++), all classes in turn
(now `--labels balanced`), and nothing selected:

| 10,000 images, against the 60,000 of the training split | samples | test split |
|---|---|---|
| Frechet distance in the classifier's features, FD-10k | 1.32 | 0.37 |
| precision / recall | 0.891 / 0.930 | 0.946 / 0.933 |
| density / coverage | 0.80 / 0.89 | 0.97 / 0.95 |
| share closer to a training image than 99% of the test split is | 0.0016 ± 0.0004 | 0.01 |
| bits/dim of the test split, 256 levels | 1.989 ± 0.004 | |

![Digits drawn by the MNIST model, a class in each column](experiments/mnist.png)
"""

from typing import TYPE_CHECKING

from ddpm_jax import lazy_modules

if TYPE_CHECKING:
    from ddpm_jax.evaluation import evaluate, report, scores

__all__ = ["evaluate", "report", "scores"]

__getattr__ = lazy_modules(__name__, __all__)
