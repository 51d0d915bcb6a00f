"""Handwritten digits by EDM (Karras et al. 2022): the network and the minutes of digits.py, another process.

    python experiments/digits_edm.py

Trains for one to two minutes on 2 CPU cores and ends with a picture, runs/digits_edm/samples/00003200.png.
"""

import dataclasses

from digits import experiment as digits

from ddpm_jax import launch, process, sampling, targets, timesteps

# The root mean square of the digits in [-1, 1]; EDM's networks are for images of 0.5.
SIGMA_DATA = 0.85

experiment = dataclasses.replace(
    digits,
    name="digits_edm",
    schedule=process.VarianceExploding(sigma_min=0.002, sigma_max=80.0, sigma_data=SIGMA_DATA),
    target=targets.Edm(SIGMA_DATA),  # with objective.SquaredError(), EDM's loss
    timesteps=timesteps.LogNormalSigma(mean=-1.2, std=1.2),
    sampler=sampling.Heun(num_steps=18),
)

if __name__ == "__main__":
    launch(experiment)
