"""Settings of networks and backbones: keyword arguments with a default and a check.

A class takes its settings as keyword-only arguments, and maps those of limited range to
a check in its attribute `checks`; `registry.create_model` does the rest.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from encnet_jax.errors import UserError

# Returns "" for an allowed value, else a text that says what is allowed.
Check = Callable[[Any], str]


class Setting(NamedTuple):
    """The default of a setting, and its check if not every value is allowed."""

    default: Any
    check: Check | None = None


@functools.cache
def settings_of(entry: Callable[..., Any]) -> dict[str, Setting]:
    """Returns the settings of a class, or of a partial call of one, by name.

    They are the keyword-only arguments with a default, those of base classes included,
    to which a subclass passes on what it does not use itself.
    """
    cls = class_of(entry)
    checks = getattr(cls, "checks", {})
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            for key, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    defaults[key] = parameter.default
    return {
        key: Setting(default, checks.get(key))
        for key, default in defaults.items()
        if default is not inspect.Parameter.empty
    }


def class_of(entry: Callable[..., Any]) -> Any:
    """Returns a class itself, or that of a partial call."""
    return entry.func if isinstance(entry, functools.partial) else entry


def check_value(key: str, value: Any, check: Check | None) -> None:
    """Raises `UserError`, naming the key and what is allowed, if a check fails."""
    allowed = check(value) if check else ""
    if allowed:
        raise UserError(f"model.{key}={value!r}: {allowed}")


def one_of(*allowed: Any) -> Check:
    """Returns a check for one of several values."""
    names = ", ".join(map(str, allowed))
    return lambda value: "" if value in allowed else f"allowed are {names}"


def at_least(bound: int, at_most: int | None = None) -> Check:
    """Returns a check for integers of at least `bound`, perhaps with an upper bound."""
    allowed = f"must be an integer of at least {bound}"
    if at_most is not None:
        allowed += f" and at most {at_most}"

    def check(value: Any) -> str:
        integer = isinstance(value, int) and not isinstance(value, bool)
        fits = integer and bound <= value and (at_most is None or value <= at_most)
        return "" if fits else allowed

    return check


def stages_of_four(value: Any) -> str:
    """A check for a selection of the four stages of a backbone."""
    fits = isinstance(value, Iterable) and all(x in (1, 2, 3, 4) for x in value)
    return "" if fits else "must be a tuple of the stages 1, 2, 3, 4"
