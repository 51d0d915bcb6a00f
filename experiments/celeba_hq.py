"""CelebA-HQ, 256x256: the recipe of Ho et al. 2020 (arXiv 2006.11239), number by number.

    python experiments/celeba_hq.py --data.path FOLDER

FOLDER holds the 30,000 images as files.  Sources: appendix B of the paper, and `scripts/run_celebahq.py` of
the code published with it.  On a TPU v3-8 the paper trains 2.2 steps a second at this size (appendix B).
"""

from ddpm_jax import (  # isort: skip
    Experiment, average, clipping, data, launch, nets, objective, optimizer, sampling, schedule, targets, variance,
    weighting,
)  # fmt: skip

experiment = Experiment(
    name="celeba_hq",
    data=data.Folder("celeba_hq", size=256, channels=3),
    # Appendix B: six levels from 256x256 to 8x8, attention at 16x16; 113.7M parameters.
    net=nets.UNet(
        channels=128, channel_multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_resolutions=(16,), dropout=0.0
    ),
    schedule=schedule.Linear(num_steps=1000, beta_start=1e-4, beta_end=0.02),  # section 4
    target=targets.Eps(),
    objective=objective.SquaredError(weighting=weighting.Simple()),
    optimizer=optimizer.Adam(
        learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0
    ),  # appendix B; warm-up, clip: the code
    ema=average.Ema(decay=0.9999, warmup=False),  # appendix B
    variance=variance.FixedSmall(),  # the code
    sampler=sampling.Ancestral(),
    clip=clipping.Clip(),  # in sampling and in the bound
    flip=True,  # appendix B
    batch_size=64,  # appendix B
    num_steps=500_000,  # appendix B
)

if __name__ == "__main__":
    launch(experiment)
