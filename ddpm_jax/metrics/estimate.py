"""A number measured on a sample, and how far chance may have moved it."""

from dataclasses import dataclass
from statistics import NormalDist

from ddpm_jax.errors import require


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error: the standard deviation that the value has over samples of this size."""

    value: float
    standard_error: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """value -+ z standard_error: normal, and so to hold the value's expectation in a share `level` of samples."""
        require("level", level, 0 < level < 1, "a number between 0 and 1")
        reach = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.value - reach, self.value + reach
