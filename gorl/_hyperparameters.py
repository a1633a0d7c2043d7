"""Hyperparameters as data: declared with their range, checked, addressed by dotted name, written to JSON.

A group of hyperparameters is an `equinox.Module`. Numbers that decide no shape are pytree leaves, declared with
[`float_field`][] or [`int_field`][]. Numbers that decide a shape or a trip count are static, declared with
[`static_field`][].
"""

import dataclasses
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from ._errors import InputError, unknown_name
from ._tree import is_traced

Group = TypeVar("Group", bound=eqx.Module)


@dataclasses.dataclass(frozen=True)
class Range:
    """The valid values of a hyperparameter."""

    integral: bool
    is_static: bool = False  # one number, or a tuple of them, and never a batch
    is_tuple: bool = False
    is_optional: bool = False
    above: int | float | None = None
    at_least: int | float | None = None
    at_most: int | float | None = None

    def __str__(self) -> str:
        bounds = (
            ("above", self.above),
            ("at least", self.at_least),
            ("at most", self.at_most),
        )
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        kind = "integer" if self.integral else "number"
        many = "one or more" if self.is_tuple else "an" if self.integral else "a"
        numbers = f"{many} {kind}{'s' * self.is_tuple} {limits}".rstrip()
        return f"{numbers}, or none" if self.is_optional else numbers

    def holds(self, value: Any) -> bool:
        """Whether every entry of `value` is of the right kind and in the range (NaN never is)."""
        if value is None:
            return self.is_optional
        if self.is_tuple:
            return isinstance(value, tuple) and all(dataclasses.replace(self, is_tuple=False).holds(v) for v in value)
        numbers = (int,) if self.is_static else (int, float, np.ndarray, np.generic, jax.Array)
        if not isinstance(value, numbers):
            return False
        array = np.asarray(value)
        if array.dtype.kind not in ("iu" if self.integral else "fiu"):
            return False
        array = array.astype(np.float64)
        bounds = (
            (self.above, np.greater),
            (self.at_least, np.greater_equal),
            (self.at_most, np.less_equal),
        )
        inside = all(np.all(compare(array, bound)) for bound, compare in bounds if bound is not None)
        return inside and not np.any(np.isnan(array))


def _as_float(value: Any) -> Any:
    if isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool):
        return float(value)
    return value


def float_field(
    default: float | None,
    *,
    above: int | float | None = None,
    at_least: int | float | None = None,
    at_most: int | float | None = None,
) -> Any:
    """Declares a real hyperparameter: a pytree leaf, so that a batch of them can be trained under `vmap`."""
    allowed = Range(False, is_optional=default is None, above=above, at_least=at_least, at_most=at_most)
    return eqx.field(default=default, converter=_as_float, metadata={"range": allowed})


def int_field(default: int, *, at_least: int) -> Any:
    """Declares an integer hyperparameter that decides no shape: a pytree leaf."""
    return eqx.field(default=default, metadata={"range": Range(True, at_least=at_least)})


def static_field(default: Any, *, at_least: int = 1) -> Any:
    """Declares an integer, or a tuple of integers, that decides a shape or a trip count: static."""
    allowed = Range(
        True, is_static=True, is_tuple=isinstance(default, tuple), is_optional=default is None, at_least=at_least
    )
    return eqx.field(default=default, static=True, metadata={"range": allowed})


def check_ranges(group: eqx.Module, prefix: str = "") -> None:
    """Checks the range of every hyperparameter of `group`, and of the groups inside it.

    Values that JAX is tracing are skipped.

    **Arguments:**

    - `group`: the hyperparameters.
    - `prefix`: the dotted name that leads to `group`, for the messages.

    **Raises:**

    `gorl.InputError` if a value is of the wrong kind or out of its range.
    """
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, eqx.Module):
            check_ranges(value, f"{prefix}{field.name}.")
        elif (allowed := field.metadata.get("range")) is not None:
            if is_traced(value):
                continue
            if not allowed.holds(value):
                raise InputError(f"{prefix}{field.name} must be {allowed}, not {value!r}.")


def replace(group: Group, changes: Mapping[str, Any]) -> Group:
    """A copy of `group` with some values changed. They change together, so that values that depend on each other can.

    **Arguments:**

    - `group`: a `gorl.Config`, or any group of hyperparameters inside one.
    - `changes`: the new values by dotted name, such as `{"learner.learning_rate": 3e-4}`.

    **Returns:**

    The changed copy.

    **Raises:**

    `gorl.InputError` for a name that is not there (with the nearest ones), or a value out of range.
    """
    here: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    fields = _fields(type(group))
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if first not in fields:
            raise unknown_name(f"field of {type(group).__name__}", first, fields)
        if rest:
            inside.setdefault(first, {})[rest] = value
        else:
            here[first] = value
    for first, inner in inside.items():
        part = here.get(first, getattr(group, first))
        if not isinstance(part, eqx.Module):
            raise InputError(f"{first} has no fields of its own, so {first}.{next(iter(inner))} cannot be set.")
        here[first] = replace(part, inner)
    return dataclasses.replace(group, **here)  # pyright: ignore[reportArgumentType]


def parse(group: eqx.Module, name: str, text: str, prefix: str = "") -> Any:
    """The value that `text` stands for, for the field `name` of `group`.

    **Arguments:**

    - `group`: the group of hyperparameters that the name starts from.
    - `name`: a dotted name.
    - `prefix`: the dotted name that leads to `group`, for the messages.
    - `text`: what a person typed, such as `"3e-4"`, `"1_000_000"`, `"Heun"` or `"1000000,500000"`.

    **Returns:**

    An integer, a real number, a tuple of integers, a string, or `None` for the text `"none"`.

    **Raises:**

    `gorl.InputError` if there is no such field, or the text does not fit it.
    """
    first, _, rest = name.partition(".")
    fields = _fields(type(group))
    if first not in fields:
        raise unknown_name(f"field of {type(group).__name__}", first, fields)
    value = getattr(group, first)
    if rest:
        if not isinstance(value, eqx.Module):
            raise InputError(f"{first} has no fields of its own, so {prefix}{name} cannot be set.")
        return parse(value, rest, text, f"{prefix}{first}.")
    if isinstance(value, eqx.Module):
        names = ", ".join(f"{prefix}{first}.{inner}" for inner in _fields(type(value)))
        hint = f"set one of {names}" if names else f"{type(value).__name__} has none to set"
        raise InputError(f"{prefix}{first} is a group of fields: {hint}.")
    allowed = fields[first].metadata.get("range")
    optional = type(None) in typing.get_args(fields[first].type)
    if optional and text.casefold() == "none":
        return None
    if allowed is None:
        if isinstance(value, bool):
            if text.casefold() not in ("true", "false"):
                raise InputError(f"{prefix}{name} must be true or false, not {text!r}.")
            return text.casefold() == "true"
        if "," in text and any(typing.get_origin(kind) is tuple for kind in typing.get_args(fields[first].type)):
            try:
                return tuple(float(entry) for entry in text.split(",") if entry.strip())
            except ValueError as error:
                raise InputError(f"{prefix}{name} must be a name or numbers with commas, not {text!r}.") from error
        return text
    number: Callable[[str], Any] = whole_number if allowed.integral else float
    try:
        if isinstance(value, tuple):
            return tuple(number(entry) for entry in text.split(",") if entry.strip())
        return number(text)
    except ValueError as error:
        raise InputError(f"{prefix}{name} must be {allowed}, not {text!r}.") from error


def split_setting(option: str) -> tuple[str, str]:
    """The dotted name and the text of an option `--set FIELD=VALUE`.

    **Raises:**

    `gorl.InputError` if there is no `=`.
    """
    name, separator, text = (part.strip() for part in option.partition("="))
    if not separator:
        raise InputError(f"--set {option} sets nothing: write it as FIELD=VALUE.")
    return name, text


def whole_number(text: str) -> int:
    """The integer that `text` writes, in any of the forms `1000000`, `1_000_000`, `1e6`.

    **Raises:**

    `ValueError` if it writes none.
    """
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def to_dict(group: eqx.Module) -> dict[str, Any]:
    """The values of `group` as plain data that JSON can hold exactly.

    **Raises:**

    `gorl.InputError` if a value is a batch: one file describes one run.
    """
    data: dict[str, Any] = {}
    if _is_a_choice(type(group)):
        data["type"] = type(group).__name__
    for name in _fields(type(group)):
        data[name] = _plain(name, getattr(group, name))
    return data


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, eqx.Module):
        return to_dict(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if np.ndim(value) != 0:
            raise InputError(f"{name} is a batch of {np.size(value)} values: write one configuration for each.")
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"{name} is a Python object, {value!r}, which cannot be written to a file; give it by name.")


def from_dict(kind: type[Group], data: Any, prefix: str = "") -> Group:
    """The group of hyperparameters that [`to_dict`][] turned into `data`.

    **Arguments:**

    - `kind`: its class, or the abstract class of which `data["type"]` names a concrete one.
    - `data`: plain data.
    - `prefix`: the dotted name that leads here, for the messages.

    **Raises:**

    `gorl.InputError` for data of another shape: an unknown field (with the nearest names), a wrong kind of value, or
    a value out of range.
    """
    where = prefix.rstrip(".") or "the configuration"
    if not isinstance(data, Mapping):
        raise InputError(f"{where} must be a group of fields, not {data!r}.")
    data = dict(data)
    if _is_a_choice(kind):
        choices = {choice.__name__: choice for choice in _concrete(kind)}
        name = data.pop("type", None)
        if name not in choices:
            raise unknown_name(f"{prefix}type", str(name), choices)
        kind = choices[name]
    fields = _fields(kind)
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in fields:
            raise unknown_name(f"field of {kind.__name__}", name, fields)
        values[name] = _restored(fields[name], value, prefix)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise InputError(f"{where} has no {prefix}{name}: give it one.")
    return kind(**values)


def _restored(field: dataclasses.Field, value: Any, prefix: str) -> Any:
    inner = field.type
    if isinstance(inner, type) and issubclass(inner, eqx.Module):
        return from_dict(inner, value, f"{prefix}{field.name}.")
    allowed = field.metadata.get("range")
    if allowed is not None and not allowed.integral and value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, list):
        return tuple(value)
    return value


def load_json(text: str) -> Any:
    """The data that a JSON text holds.

    **Raises:**

    `gorl.InputError` if the text is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"this is not a whole JSON text: {error}.") from error


def _fields(kind: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(kind) if field.init}


def _is_a_choice(kind: type) -> bool:
    """Whether `kind` is one of several classes with an abstract base in common, so that a file must name it."""
    return any(inspect.isabstract(base) for base in kind.__mro__ if issubclass(base, eqx.Module))


def _concrete(kind: type) -> list[type]:
    classes = [] if inspect.isabstract(kind) else [kind]
    for child in kind.__subclasses__():
        classes += _concrete(child)
    return classes
