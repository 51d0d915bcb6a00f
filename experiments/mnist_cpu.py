"""MNIST, 28x28, in about an hour on 2 CPU cores: the network sees patches of 2x2 pixels.

    python experiments/mnist_cpu.py

Needs the data set prepared once, as experiments/mnist.py says.
"""

from ddpm_jax import Experiment, average, clipping, data, launch, nets, optimizer, sampling, schedule, targets

experiment = Experiment(
    name="mnist_cpu",
    data=data.Tfds("mnist", split="train", label_key="label"),
    # Two levels, 14 and 7 places wide.
    net=nets.UNet(
        channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(7,),
        dropout=0.0,
        num_classes=10,
        label_dropout=0.1,
        norm_groups=8,
        patch_size=2,
    ),
    schedule=schedule.Cosine(num_steps=1000),
    target=targets.V(),
    optimizer=optimizer.Adam(learning_rate=1e-3, warmup_steps=200, decay="cosine"),
    ema=average.Ema(decay=0.999, warmup=True),
    sampler=sampling.DpmSolver(num_steps=20, grid=sampling.Uniform()),
    clip=clipping.Clip(),  # in sampling and in the bound
    batch_size=32,
    num_steps=14_000,
    checkpoint_every=1000,
    sample_every=2000,
    num_samples=100,
)

if __name__ == "__main__":
    launch(experiment)
