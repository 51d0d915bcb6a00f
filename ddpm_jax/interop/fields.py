"""The fields of a config of diffusers: each must be looked at, and one that is not known is an error."""

from collections.abc import Collection, Mapping
from typing import Any

from ddpm_jax.errors import require


class Fields:
    """A config, with diffusers' defaults for what it leaves out; `where` names its file in errors.

    ignored: fields that diffusers itself passes over.  Raises ValueError for any other field that is not among the
    defaults: what it means is not known.
    """

    def __init__(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any], where: str, ignored: Collection[str] = ()
    ) -> None:
        left_out = config.get("_use_default_values", [])  # so diffusers marks what it filled in itself
        passed_over = {*left_out, *ignored} - (defaults.keys() - set(left_out))
        given = {name: value for name, value in config.items() if not name.startswith("_") and name not in passed_over}
        for name, value in given.items():
            known = "no such field: what it means is not known; remove it if it is without effect"
            require(f"{where}: {name}", value, name in defaults, known)
        self._values, self._where = {**defaults, **given}, where

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def require(self, name: str, holds: bool, expected: str) -> Any:
        """The value of a field; ValueError, naming it and what would be accepted, unless `holds`."""
        require(f"{self._where}: {name}", self[name], holds, expected)
        return self[name]

    def one_of(self, name: str, accepted: Collection[Any]) -> Any:
        """The value of a field that must be one of these."""
        value = self[name]
        holds = any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in accepted)
        return self.require(name, holds, " or ".join(map(repr, accepted)))

    def whole(self, name: str, least: int = 1) -> int:
        """The value of a field that must be a whole number."""
        value = self[name]
        return self.require(name, type(value) is int and value >= least, f"a whole number, at least {least}")

    def number(self, name: str) -> float:
        """The value of a field that must be a number."""
        return float(self.require(name, type(self[name]) in (int, float), "a number"))

    def flag(self, name: str) -> bool:
        """The value of a field that must be true or false."""
        return self.require(name, isinstance(self[name], bool), "true or false")
