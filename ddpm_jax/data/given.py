"""The user's own objects as data, of any class."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ddpm_jax.data.fingerprint import fingerprint
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import StandIn, image_shape

__all__ = ["Given"]

_GIVEN: dict[tuple[str, str], Source] = {}


@dataclass(frozen=True)
class Given(StandIn):
    """An object of this process with __len__ and __getitem__ that is not a dataclass, made by `Given.of(source)`.

    A run's folder stores only its class and a digest.  To resume the run in another process, pass the object again.
    """

    name: str
    """The object's class."""
    digest: str
    """The first 16 hexadecimal digits of its fingerprint."""

    @classmethod
    def of(cls, source: Any) -> "Given":
        """The object as a source that a run can name; reads up to 100 of its examples, twice.

        Raises ValueError if an example is not as `data.source` describes it.
        """
        image_shape(source)
        found = cls(type(source).__qualname__, fingerprint(source).digest[:16])
        _GIVEN[found.name, found.digest] = source
        return found

    @cached_property
    def source(self) -> Source:
        """The object; ValueError in another process than the one that called `Given.of`."""
        if (self.name, self.digest) in _GIVEN:
            return _GIVEN[self.name, self.digest]
        found = f"an object of class {self.name}, which is not a dataclass and was in the memory of the process"
        raise ValueError(f"data is {found} that trained on it; give it again, Experiment(data=...)")
