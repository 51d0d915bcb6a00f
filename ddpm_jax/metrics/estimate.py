"""A number measured on a sample, with its standard error."""

from dataclasses import dataclass
from statistics import NormalDist

from ddpm_jax.errors import require

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error: the standard deviation of the value over samples of this size."""

    value: float
    standard_error: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """value -+ z standard_error: an interval that covers the mean of the value for a fraction `level` of samples.

        Raises ValueError unless 0 < level < 1.
        """
        require("level", level, 0 < level < 1, "a number between 0 and 1")
        reach = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.value - reach, self.value + reach
