"""The robots of MuJoCo Playground, made of files that are on this machine.

Playground clones MuJoCo Menagerie when it loads the first robot. Here nothing is downloaded: a task is made with other
global variables, so that it finds its files elsewhere, and Playground's modules stay as they are.
"""

import functools
import math
import os
import pathlib
import struct
from typing import Any

import mujoco
import numpy as np

from .._errors import InputError
from ._rewire import made

_URL = "https://github.com/google-deepmind/mujoco_menagerie"
_MARK = b"# a placeholder of gorl"
_CORNERS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
_FACES = ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))
_PLACEHOLDER_SIZE = 0.02  # metres
_MODEL: Any = mujoco.MjModel  # pyright: ignore[reportAttributeAccessIssue]
_SPEC: Any = mujoco.MjSpec  # pyright: ignore[reportAttributeAccessIssue]
_GEOM = mujoco.mjtObj.mjOBJ_GEOM  # pyright: ignore[reportAttributeAccessIssue]
_ALWAYS_FROM_GEOMS = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_TRUE  # pyright: ignore[reportAttributeAccessIssue]


def make_robot(name: str, task: Any, **options: Any) -> Any:
    """A task of Playground with a robot of Menagerie.

    **Arguments:**

    - `name`: its name.
    - `task`: its class, or a `functools.partial` of it.
    - `options`: what it is made with.

    **Raises:**

    `gorl.InputError` if this machine lacks files that decide the physics.
    """
    from mujoco_playground._src import mjx_env

    if isinstance(task, functools.partial):
        task, options = task.func, task.keywords | options
    menagerie = _Menagerie(mjx_env.MENAGERIE_PATH)
    compiler = _Compiler()
    try:
        return made(task, {mjx_env.MENAGERIE_PATH: menagerie, _MODEL: compiler}, **options)
    except ValueError as error:  # MuJoCo's, for a file that is not there
        lacking = _few(compiler.needed) if compiler.needed else str(error).strip().splitlines()[0].rstrip(".")
        robots = " and ".join(dict.fromkeys(menagerie.robots))
        root = "this machine" if menagerie.root is None else f"MENAGERIE_ROOT={menagerie.root}"
        raise InputError(
            f"{name} needs files of {robots} in MuJoCo Menagerie that {root} lacks ({lacking}): git clone {_URL}, and "
            "set the environment variable MENAGERIE_ROOT to the clone."
        ) from error


def is_placeholder(content: Any) -> bool:
    """Whether an asset of a task stands for a mesh that this machine lacks."""
    return isinstance(content, bytes) and content.startswith(_MARK)


class _Menagerie:
    """Takes the place of Playground's path of Menagerie.

    **Attributes:**

    - `root`: the checkout or the cache of the package `mujoco-menagerie` that the user names; `None` without one, and
        where Playground has downloaded Menagerie.
    - `robots`: the robots that have been asked for.
    """

    def __init__(self, downloaded: Any):
        named = os.environ.get("MENAGERIE_ROOT")
        self._downloaded = downloaded
        self.root = pathlib.Path(named) if named and not downloaded.exists() else None
        self.robots: list[str] = []
        if self.root is not None and not self.root.is_dir():
            raise InputError(f"MENAGERIE_ROOT={self.root} is no directory: set it to a checkout of {_URL}.")

    def __truediv__(self, robot: str) -> Any:
        self.robots.append(robot)
        if self.root is None:
            return self._downloaded / robot
        cached = sorted(self.root.glob(f"models/{robot}-*"), key=lambda path: path.stat().st_mtime)
        return type(self._downloaded)(cached[-1] if cached else self.root / robot)


class _Compiler:
    """Takes the place of `mujoco.MjModel`. It puts placeholders where missing meshes change nothing but pictures.

    **Attributes:**

    - `needed`: the missing meshes that do change something.
    """

    def __init__(self) -> None:
        self.needed: list[str] = []

    def from_xml_string(self, xml: str, assets: dict[str, bytes]) -> Any:
        include = {name: content for name, content in assets.items() if name.endswith(".xml")}
        spec = _SPEC.from_string(xml, include=include, assets=assets)  # without a look at the meshes
        named = {name for pair in spec.pairs for name in (pair.geomname1, pair.geomname2)}
        named |= {sensor.objname for sensor in spec.sensors if sensor.objtype == _GEOM}
        named |= {sensor.refname for sensor in spec.sensors if sensor.reftype == _GEOM}
        physical = {geom.meshname for geom in spec.geoms if geom.name in named or _has_physics(spec, geom)}
        for mesh in spec.meshes:
            name = pathlib.PurePosixPath(mesh.file).name  # MuJoCo looks for names only
            if not name or name in assets:
                continue
            if mesh.name in physical:
                self.needed.append(name)
            else:
                assets[name] = _tetrahedron(name, _PLACEHOLDER_SIZE / np.max(np.abs(mesh.scale)))
        return _MODEL.from_xml_string(xml, assets)


def _has_physics(spec: Any, geom: Any) -> bool:
    """Whether a geom can collide, or gives its body an inertia."""
    is_given = geom.parent.explicitinertial and spec.compiler.inertiafromgeom != _ALWAYS_FROM_GEOMS
    is_massless = geom.mass == 0 or (math.isnan(geom.mass) and geom.density == 0)
    return bool(geom.contype or geom.conaffinity or not (is_given or is_massless))


def _tetrahedron(name: str, size: float) -> bytes:
    """The content of a mesh file, in the format that its name ends in."""
    corners = size * np.array(_CORNERS, np.float32)
    if name.lower().endswith(".obj"):
        lines = [f"v {x:g} {y:g} {z:g}" for x, y, z in corners]
        lines += [f"f {one + 1} {two + 1} {three + 1}" for one, two, three in _FACES]
        return b"\n".join([_MARK, *map(str.encode, lines), b""])
    triangles = [struct.pack("<12fH", 0, 0, 0, *corners[list(face)].ravel(), 0) for face in _FACES]
    return _MARK.ljust(80) + struct.pack("<I", len(triangles)) + b"".join(triangles)  # STL


def _few(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
