"""CIFAR-10, 32x32: the recipe of Ho et al. 2020 (arXiv 2006.11239), number by number.

    python experiments/cifar10.py

Needs the data set `cifar10` of TensorFlow Datasets in the array_record format.  Sources: appendix B of the
paper, and `scripts/run_cifar.py` of the code published with it.  The paper reports (section 4, table 1) an
Inception score of 9.46 and an FID of 3.17 against the training set, from 50,000 samples, and at most 3.75
bits/dim; training took 10.6 hours on a TPU v3-8, at 21 steps a second (appendix B).

One difference: the published code clips the gradient on each replica before averaging; here the gradient
of the whole batch is clipped.
"""

from ddpm_jax import (  # isort: skip
    Experiment, average, clipping, data, launch, nets, objective, optimizer, sampling, schedule, targets, variance,
    weighting,
)  # fmt: skip

experiment = Experiment(
    name="cifar10",
    data=data.Tfds("cifar10", split="train"),
    # Appendix B: four levels from 32x32 to 4x4, two residual blocks each, attention at 16x16; 35.7M parameters.
    net=nets.UNet(
        channels=128, channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,), dropout=0.1
    ),
    schedule=schedule.Linear(num_steps=1000, beta_start=1e-4, beta_end=0.02),  # section 4
    target=targets.Eps(),  # section 3.2
    objective=objective.SquaredError(weighting=weighting.Simple()),  # section 3.4
    # Appendix B; warm-up and clip_norm: the code.
    optimizer=optimizer.Adam(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
    ema=average.Ema(decay=0.9999, warmup=False),  # appendix B
    variance=variance.FixedLarge(),  # the code: fixedlarge with the simple loss
    sampler=sampling.Ancestral(),
    clip=clipping.Clip(),  # in sampling and in the bound
    flip=True,  # appendix B
    batch_size=128,  # appendix B
    num_steps=800_000,  # appendix B
)

if __name__ == "__main__":
    launch(experiment)
