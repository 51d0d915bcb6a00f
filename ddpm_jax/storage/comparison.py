"""How two specs differ: in their fields, or in the code of their classes."""

import json
from typing import Any

from ddpm_jax.storage.classes import code_of, file_classes


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The fields in which two encoded specs differ.

    Args:
        old: the JSON value of the spec on disk.
        new: the JSON value of the spec at hand.
        where: the name of the field that holds both; empty for a whole spec.

    Returns:
        One line for each field, such as "net.channels: 64 there, 128 here".
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        names = dict.fromkeys([*old, *new])
        parts = (differences(old.get(name), new.get(name), f"{where}.{name}".lstrip(".")) for name in names)
        return [line for part in parts for line in part]
    if old == new:
        return []
    if _short(old) == _short(new):  # two classes with one name, in two modules
        old, new = old["class"], new["class"]
    return [f"{where}: {_short(old)} there, {_short(new)} here"]


def _short(value: Any) -> str:
    return str(value.get("class", "")).split(":")[-1] if isinstance(value, dict) else json.dumps(value)


def changed_code(old: Any, new: Any) -> list[str]:
    """The names of the classes of experiment files that two specs share, but with different code of the class."""
    there, here = file_classes(old), file_classes(new)
    other = [name for name in there.keys() & here.keys() if there[name] is not here[name]]
    return sorted(name for name in other if code_of(there[name]).strip() != code_of(here[name]).strip())
