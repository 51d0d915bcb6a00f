"""How every specification refuses a wrong value: by the field's name, the value, and what it would take."""

import numpy as np


def require(field: str, value: object, holds: bool, expected: str) -> None:
    """Raise ValueError("FIELD is VALUE; expected EXPECTED") unless `holds`."""
    if not holds:
        raise ValueError(f"{field} is {value!r}; expected {expected}")


def whole(field: str, value: object, least: int, expected: str | None = None) -> None:
    """Raise ValueError unless `value` is a whole number (not a boolean), `least` or more."""
    holds = isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
    require(field, value, holds, expected or f"a whole number, at least {least}")


class RunError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""
