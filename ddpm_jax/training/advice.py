"""What runs but is probably not meant: each function returns one line for the user, or None where all is well."""

import dataclasses

from ddpm_jax.diffusion.process import Continuous
from ddpm_jax.diffusion.schedule import PUBLISHED_STEPS, Linear, Schedule
from ddpm_jax.training.average import Averaging, Ema

# An average with a larger share of the parameters from before the first step is reported.
INITIAL_SHARE = 0.05
# A schedule that leaves a larger share of the data's variance in z_T is reported.  Of the published ones the scaled
# linear betas of latent diffusion leave most, 0.0047; 0.01 is a tenth of the data's amplitude.
REMAINING_VARIANCE = 0.01


def of_schedule(spec: Schedule | Continuous) -> str | None:
    """That z_T keeps much of the data, alpha_bar_T > 0.01, though sampling starts at pure noise; with the remedies."""
    process = spec.build()
    snr = float(process.snr(process.last))
    left = snr / (1 + snr)  # the share of the data in the variance of z; alpha_bar_T of a chain
    if left <= REMAINING_VARIANCE:
        return None
    if isinstance(spec, Continuous):
        return (
            f"schedule: z at the noisy end, t = {process.last}, keeps {left:.2g} of the data's variance, but sampling "
            f"starts at pure noise; end at more noise, so that it is at most {REMAINING_VARIANCE}"
        )
    told = f"schedule: z_T keeps {left:.2g} of the data's variance (alpha_bar_T), but sampling starts at pure noise"
    if not (isinstance(spec, Linear) and spec.beta_start is not None and spec.beta_end is not None):
        return f"{told}; take more steps or larger betas, so that it is at most {REMAINING_VARIANCE}"
    start, end, steps = spec.beta_start, spec.beta_end, spec.num_steps
    told += f": beta_start {start:g} and beta_end {end:g} are too small for num_steps {steps}"
    remedies = [
        f"leave out beta_start and beta_end (--schedule.beta-start None --schedule.beta-end None), so that the "
        f"published betas are resampled to {steps} steps"
    ]
    factor = PUBLISHED_STEPS / steps
    if end * factor < 1:
        scaled = dataclasses.replace(spec, beta_start=start * factor, beta_end=end * factor)
        if float(scaled.build().alpha_bar[-1]) <= REMAINING_VARIANCE:
            remedies.append(
                f"multiply both by {PUBLISHED_STEPS}/{steps} (--schedule.beta-start {start * factor:.4g} "
                f"--schedule.beta-end {end * factor:.4g})"
            )
    return f"{told}; {', or '.join(remedies)}"


def of_average(averaging: Averaging, step: int, profile: float | None = None) -> str | None:
    """That averages after `step` steps contain more than 5% of the parameters from before the first step.

    profile: the only average that is of interest; None for all that are kept.
    """
    shares = zip(averaging.profiles, averaging.initial_shares(step), strict=True)
    large = {at: share for at, share in shares if share > INITIAL_SHARE and profile in (None, at)}
    if not large:
        return None
    listed = " and ".join(f"{share:.0%} of the average {at:.10g}" for at, share in large.items())
    return f"ema: after {step:,} steps {listed} is still the weights from before the first step"


def of_average_at_the_end(averaging: Averaging, num_steps: int) -> str | None:
    """`of_average` for a training of `num_steps` steps that has not begun, with the remedies."""
    told = of_average(averaging, num_steps)
    if told is None:
        return None
    lower = "a lower --ema.decay" if isinstance(averaging, Ema) else "an average that forgets them sooner"
    remedies = ["--ema.warmup"] if isinstance(averaging, Ema) and not averaging.warmup else []
    return (
        f"{told}, so samples will look worse than the network allows; {', '.join([*remedies, lower])}, or train longer"
    )
