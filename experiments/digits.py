"""Handwritten digits, 8x8: the whole path in minutes on a laptop's CPU.

    python experiments/digits.py

Trains for one to two minutes on 2 CPU cores and ends with a picture, runs/digits/samples/00003200.png.
"""

from ddpm_jax import Experiment, average, clipping, data, launch, nets, optimizer, sampling, schedule, targets

experiment = Experiment(
    name="digits",
    data=data.Digits(split="train"),
    # Two levels, 8x8 and 4x4; small batches and many steps learn most in a minute of CPU.
    net=nets.UNet(
        channels=24,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.0,
        num_classes=10,
        label_dropout=0.1,  # so that it can be guided
        norm_groups=8,
    ),
    schedule=schedule.Cosine(num_steps=1000),
    target=targets.V(),
    optimizer=optimizer.Adam(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
    ema=average.Ema(decay=0.995, warmup=False),
    sampler=sampling.Ancestral(num_steps=100),
    clip=clipping.Clip(),  # in sampling and in the bound
    batch_size=16,
    num_steps=3200,
    log_every=200,
    checkpoint_every=800,
    sample_every=3200,
    num_samples=100,
)

if __name__ == "__main__":
    launch(experiment)
