"""Handwritten digits by rectified flow (Liu et al. 2022): the network and the minutes of digits.py, another process.

    python experiments/digits_flow.py

Trains for one to two minutes on 2 CPU cores and ends with a picture, runs/digits_flow/samples/00003200.png.
"""

import dataclasses

from digits import experiment as digits

from ddpm_jax import launch, process, sampling, targets, timesteps

experiment = dataclasses.replace(
    digits,
    name="digits_flow",
    schedule=process.RectifiedFlow(),
    target=targets.Velocity(),  # eps - x
    timesteps=timesteps.LogitNormal(mean=-1.2, std=1.2),  # the density of digits_edm.py, which looks at small t
    sampler=sampling.Ddim(num_steps=50),  # along straight lines of (signal, noise): Euler's method
)

if __name__ == "__main__":
    launch(experiment)
