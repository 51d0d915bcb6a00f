"""MNIST, 28x28, through TensorFlow Datasets: the DDPM recipe at a size for one GPU; a CPU wants --batch-size 32.

    python experiments/mnist.py

Needs the data set prepared once; without a network, from an .npz with the arrays train_images,
train_labels, test_images and test_labels:

    ddpm-jax prepare mnist mnist.npz
"""

from ddpm_jax import Experiment, average, clipping, data, launch, nets, optimizer, sampling, schedule, targets

experiment = Experiment(
    name="mnist",
    data=data.Tfds("mnist", split="train"),
    # Three levels: 28, 14 and 7 pixels.
    net=nets.UNet(
        channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=2, attention_resolutions=(14,), norm_groups=8
    ),
    schedule=schedule.Linear(num_steps=1000),
    target=targets.Eps(),
    optimizer=optimizer.Adam(learning_rate=2e-4, warmup_steps=1000),
    ema=average.Ema(decay=0.9995, warmup=True),
    sampler=sampling.Ancestral(),
    clip=clipping.Clip(),  # in sampling and in the bound
    batch_size=128,
    num_steps=50_000,
    checkpoint_every=2500,
    sample_every=5000,
)

if __name__ == "__main__":
    launch(experiment)
