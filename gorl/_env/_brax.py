"""Brax's environments."""

import warnings
from typing import Any

from .._errors import InputError
from ._base import EnvConfig
from ._implementation import import_mjx
from ._scene import Pose, Scene

# Observation and action sizes; see `_playground.TASKS` for why they stand here.
TASKS: dict[str, tuple[int, int]] = {
    "brax/ant": (27, 8),
    "brax/halfcheetah": (17, 6),
    "brax/hopper": (11, 3),
    "brax/humanoid": (244, 17),
    "brax/humanoidstandup": (244, 17),
    "brax/inverted_double_pendulum": (8, 1),
    "brax/inverted_pendulum": (4, 1),
    "brax/pusher": (23, 7),
    "brax/reacher": (11, 2),
    "brax/swimmer": (8, 2),
    "brax/walker2d": (17, 6),
}

BACKENDS = ("spring", "positional", "generalized", "mjx")


def load(config: EnvConfig) -> Any:
    """The Brax environment that `config` names."""
    import_mjx()
    try:
        from brax import envs

        from ._quiet import without_warnings
    except ImportError as error:
        raise InputError(
            f"{config} is an environment of Brax, which cannot be imported ({error}): pip install brax."
        ) from error
    options = {} if config.backend is None else {"backend": config.backend}
    with without_warnings(), warnings.catch_warnings():
        # Brax says at every load that its physics is no longer developed.
        warnings.filterwarnings("ignore", message="Brax System, piplines and environments")
        try:
            return envs.get_environment(str(config).removeprefix("brax/"), **options)
        except ValueError as error:
            raise InputError(f"{config} does not run on the {config.backend} backend: choose another.") from error


def scene(env: Any) -> Scene | None:
    """The scene of an environment of Brax with any physics; `None` for any other."""
    if not hasattr(env, "sys") or not hasattr(env, "dt"):
        return None
    # Brax holds its time step in single precision: 0.05 is 0.049999997.
    return Scene(env.sys.mj_model, _pose, round(float(env.dt), 6))


def _pose(state: Any) -> Pose:
    return {"qpos": state.pipeline_state.q}
