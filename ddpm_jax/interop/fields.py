"""The fields of a diffusers config: every field must be examined, and an unknown one is an error."""

from collections.abc import Collection, Mapping
from typing import Any

from ddpm_jax.errors import require

__all__ = ["Fields"]


class Fields:
    """A config with the defaults of diffusers for the fields that it leaves out.

    Args:
        config: the config.
        defaults: the fields that are known, and their defaults.
        where: the name of the file, for messages.
        ignored: fields that diffusers itself ignores.

    Raises:
        ValueError: the config has another field, whose meaning is not known.
    """

    def __init__(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any], where: str, ignored: Collection[str] = ()
    ) -> None:
        left_out = config.get("_use_default_values", [])  # the fields that diffusers filled in itself
        skipped = {*left_out, *ignored} - (defaults.keys() - set(left_out))
        given = {name: value for name, value in config.items() if not name.startswith("_") and name not in skipped}
        for name, value in given.items():
            expected = "no such field, as its meaning is not known; remove it if it has no effect"
            require(f"{where}: {name}", value, name in defaults, expected)
        self._values, self._where = {**defaults, **given}, where

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def require(self, name: str, holds: bool, expected: str) -> Any:
        """The value of a field.

        Args:
            name: the field.
            holds: whether its value is accepted.
            expected: what is accepted, for the message.

        Raises:
            ValueError: the value is not accepted.
        """
        require(f"{self._where}: {name}", self[name], holds, expected)
        return self[name]

    def one_of(self, name: str, accepted: Collection[Any]) -> Any:
        """The value of a field with a few possible values.

        Args:
            name: the field.
            accepted: the values that are accepted.

        Raises:
            ValueError: it has another value.
        """
        value = self[name]
        holds = any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in accepted)
        return self.require(name, holds, " or ".join(map(repr, accepted)))

    def whole(self, name: str, least: int = 1) -> int:
        """The value of a field that is a whole number.

        Args:
            name: the field.
            least: the least value that is accepted.

        Raises:
            ValueError: it is not such a number.
        """
        value = self[name]
        return self.require(name, type(value) is int and value >= least, f"a whole number, at least {least}")

    def number(self, name: str) -> float:
        """The value of a field.  Raises ValueError if it is not a number."""
        return float(self.require(name, type(self[name]) in (int, float), "a number"))

    def flag(self, name: str) -> bool:
        """The value of a field.  Raises ValueError if it is not true or false."""
        return self.require(name, isinstance(self[name], bool), "true or false")
