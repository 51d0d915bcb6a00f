"""How every specification refuses a wrong value: by the field's name, the value, and what it would take."""


def require(field: str, value: object, holds: bool, expected: str) -> None:
    """Raise ValueError("FIELD is VALUE; expected EXPECTED") unless `holds`."""
    if not holds:
        raise ValueError(f"{field} is {value!r}; expected {expected}")


class RunError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""
