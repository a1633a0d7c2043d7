"""Copies of objects whose methods call replacements of some functions.

A task of MuJoCo Playground calls MJX by name. Replacing the function in its module would change somebody else's module
for all threads. A copy of the task with global variables of its own changes nothing else.
"""

import abc
import copy
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any


def rewire(instance: Any, replacements: Mapping[Any, Any]) -> Any:
    """A copy of an object that calls the replacements. Its class is a subclass of the original one.

    Its methods are copied, and the functions that they call by a global name, if these are in modules that name one of
    the replaced functions or a module with one.

    **Arguments:**

    - `instance`: an object whose class is written in Python. If it has been rewired before, that still holds.
    - `replacements`: the replacement of each function.
    """
    cls, earlier = getattr(type(instance), "_rewired", (type(instance), {}))
    wiring = _Wiring({**earlier, **replacements})
    twin: Any = wiring.of_class(cls)
    twin._rewired = (cls, {**earlier, **replacements})
    rewired = copy.copy(instance)
    rewired.__class__ = twin
    for name, value in vars(instance).items():
        # A task may keep one of its methods by another name. It has to be the copy's.
        if isinstance(value, types.MethodType) and value.__self__ is instance:
            setattr(rewired, name, types.MethodType(wiring.of(value.__func__), rewired))
    return rewired


def made(cls: type, replacements: Mapping[Any, Any], **options: Any) -> Any:
    """An object that finds the replacements while it is made, and is afterwards as if there had been none.

    **Arguments:**

    - `cls`: its class, written in Python.
    - `replacements`: the replacement of each global variable, or attribute of a module, with a certain value.
    - `options`: what it is made with.
    """
    wiring = _Wiring(replacements)
    instance = wiring.of_class(cls)(**options)
    instance.__class__ = cls
    return instance


class _Wiring:
    """Remembers copies, so that everything is copied once and recursion ends."""

    def __init__(self, replacements: Mapping[Any, Any]):
        self._replacements = {id(value): (value, replacement) for value, replacement in replacements.items()}
        self._copies: dict[int, tuple[Any, Any]] = {}  # with the originals, so that no id is given to something else
        self._uses: dict[str, bool] = {}

    def of(self, value: Any) -> Any:
        """The copy of a value of a global variable, a class or a closure."""
        if id(value) in self._replacements:
            return self._replacements[id(value)][1]
        if isinstance(value, types.FunctionType) and (self._follows(value.__globals__) or _closes_over(value)):
            return self._once(value, self._function)
        if isinstance(value, types.ModuleType) and (self._follows(vars(value)) or self._has_replaced(vars(value))):
            return self._once(value, self._module)
        if isinstance(value, property):
            return property(self.of(value.fget), self.of(value.fset), self.of(value.fdel), value.__doc__)
        if isinstance(value, staticmethod | classmethod):
            return type(value)(self.of(value.__func__))
        return value

    def of_class(self, cls: type) -> type:
        """A subclass of `cls` with the methods of it and of its bases rewired."""
        return self._once(cls, self._class)

    def _once(self, original: Any, make: Callable[[Any], Any]) -> Any:
        if id(original) not in self._copies:
            self._copies[id(original)] = (original, make(original))
        return self._copies[id(original)][1]

    def _class(self, cls: type) -> type:
        bases = [self.of_class(base) for base in cls.__bases__ if self._follows_class(base)]
        own = ("__dict__", "__weakref__", "__slots__", "__abstractmethods__", "_abc_impl")
        attributes = {name: value for name, value in vars(cls).items() if name not in own}
        twin = type(cls)(cls.__name__, (*bases, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
        # Methods that call `super()` hold their class in a closure: it has to be the copy, or they would leave it.
        self._copies[id(cls)] = (cls, twin)
        # Every one of them, as those of the rewired bases come before those of `cls`.
        for name, value in attributes.items():
            setattr(twin, name, self.of(value))
        return abc.update_abstractmethods(twin)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        made = types.FunctionType(
            function.__code__,
            _Globals(self, function.__globals__) if self._follows(function.__globals__) else function.__globals__,
            function.__name__,
            function.__defaults__,
            cells,
        )
        made.__dict__.update(function.__dict__)
        made.__kwdefaults__ = function.__kwdefaults__
        made.__qualname__ = function.__qualname__
        made.__module__ = function.__module__
        self._copies[id(function)] = (function, made)
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            try:
                content = original.cell_contents
            except ValueError:  # nothing has been put there yet
                continue
            # A class is only in a closure of its own methods where one of them calls `super()`.
            twin = self._copies.get(id(content), (None, None))[1] if isinstance(content, type) else self.of(content)
            cell.cell_contents = content if twin is None else twin
        return made

    def _module(self, module: types.ModuleType) -> types.ModuleType:
        made = types.ModuleType(module.__name__, module.__doc__)
        made.__dict__["__getattr__"] = lambda name: self.of(getattr(module, name))
        return made

    def _follows_class(self, cls: type) -> bool:
        module = sys.modules.get(cls.__module__)
        return module is not None and self._follows(vars(module))

    def _follows(self, variables: Mapping[str, Any]) -> bool:
        """Whether functions with these global variables may call a replaced function."""
        while isinstance(variables, _Globals):  # it holds only what has been looked up
            variables = variables.originals
        name = str(variables.get("__name__"))
        if name.split(".")[0] in ("mujoco", "jax", "numpy", "builtins", "typing", "functools", "flax", "brax"):
            return False
        if name not in self._uses:
            values = tuple(variables.values())
            self._uses[name] = self._has_replaced(variables) or any(
                self._has_replaced(vars(value)) for value in values if isinstance(value, types.ModuleType)
            )
        return self._uses[name]

    def _has_replaced(self, variables: Mapping[str, Any]) -> bool:
        if variables.get("__name__") == "mujoco":  # for `mujoco.mjx.step`
            return "mjx" in variables
        return any(id(value) in self._replacements for value in tuple(variables.values()))


class _Globals(dict):
    """Global variables of a copied function: those of the original, with replacements."""

    def __init__(self, wiring: _Wiring, originals: dict[str, Any]):
        super().__init__(__builtins__=originals["__builtins__"], __name__=originals["__name__"])
        self._wiring = wiring
        self.originals = originals

    def __missing__(self, name: str) -> Any:
        return self._wiring.of(self.originals[name])


def _closes_over(function: types.FunctionType) -> bool:
    """Whether it is a decorated function."""
    return isinstance(getattr(function, "__wrapped__", None), types.FunctionType)
