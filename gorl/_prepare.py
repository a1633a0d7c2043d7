"""The checks before a run begins, so that nothing is compiled for one that cannot."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from ._backend import ENVIRONMENTS, MESH_AXES, SEEDS, default_mesh, largest_divisor, memory_of, with_both_axes
from ._config import Config, as_arrays
from ._decoder import AbstractDecoder
from ._env import EpisodicEnv, load_environment
from ._errors import InputError
from ._policy import StagedDecoder
from ._state import TrainState
from ._statistics import RunningStatistics
from ._tree import described, differing
from ._types import RandomKeys


def prepare(config: Config) -> tuple[Config, EpisodicEnv]:
    """Checks that a config can be trained.

    **Returns:**

    The config with its numbers as arrays, and its environment.

    **Raises:**

    `gorl.InputError` if it cannot.
    """
    config.check()
    if jax.config.jax_debug_nans:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "jax_debug_nans would stop at the NaN by which gorl marks what it does not know yet: set it to False (or "
            "JAX_DEBUG_NANS=0). A result says when a number was not finite and which it was: diverged_at, divergence."
        )
    env = load_environment(config.env)
    if config.num_stages > 1:
        config.refinement.check(env.num_steps)
    return as_arrays(config), env


def check_key(key: Array, *, batch_allowed: bool) -> None:
    """Checks that a run can begin with a key, or with several.

    **Raises:**

    `gorl.InputError` if it cannot.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise InputError("the key must come from jax.random.key(seed).")
    if key.ndim > batch_allowed:
        raise InputError("train takes one key: use jax.vmap(gorl.train, in_axes=(None, 0)) for several.")


def check_batch(config: Config, keys: RandomKeys) -> None:
    """Checks that a config holds single numbers, or one value for each key.

    **Raises:**

    `gorl.InputError` if it does not.
    """
    for leaf in jax.tree.leaves(config):
        if leaf.shape not in ((), keys.shape):
            raise InputError(
                f"a batch of {leaf.size} values in the config does not go with keys of shape {keys.shape}: give a key "
                "for each value to gorl.iterate, or map gorl.train over the values by eqx.filter_vmap(gorl.train, "
                "in_axes=(eqx.if_array(0), None))."
            )


def mesh_of(config: Config, keys: RandomKeys, mesh: Mesh | None) -> Mesh | None:
    """The mesh that a run goes on: the one that was asked for, or the default of a run over seeds.

    A run of one key stays on one device unless a mesh was asked for.

    **Raises:**

    `gorl.InputError` if a mesh has other axes, does not divide the seeds or the environments, or leaves devices out of
    one process and not of another.
    """
    num_envs = config.learner.num_envs
    if mesh is None:
        mesh = default_mesh(keys.size, num_envs) if keys.ndim else None
        if mesh is None:
            return None
    if unknown := set(mesh.axis_names) - set(MESH_AXES):
        raise InputError(
            f"the mesh has an axis {min(map(str, unknown))!r}: call its axes {SEEDS!r} and {ENVIRONMENTS!r}, as in "
            f"jax.make_mesh((2, 4), {MESH_AXES})."
        )
    mesh = with_both_axes(mesh)
    sizes = {SEEDS: ("the number of seeds", keys.size), ENVIRONMENTS: ("learner.num_envs", num_envs)}
    for axis, (what, number) in sizes.items():
        if number % mesh.shape[axis]:
            fitting = largest_divisor(number, mesh.shape[axis] - 1)
            raise InputError(
                f"the mesh has {mesh.shape[axis]} devices along {axis!r}, which do not divide {what}, {number}: take "
                f"{fitting} along {axis!r}."
            )
    indices = [device.process_index for device in mesh.devices.flat]
    counts = [indices.count(index) for index in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise InputError(
            f"the processes have {', '.join(map(str, counts))} devices in the mesh: give a mesh with equally many of "
            "each process, or as many seeds as there are devices."
        )
    return mesh


def check_decoder(config: Config, env: EpisodicEnv, decoder: AbstractDecoder | None) -> AbstractDecoder | None:
    """Checks that a run can begin with a decoder, or without one.

    **Returns:**

    The decoder itself, where that of a policy was given.

    **Raises:**

    `gorl.InputError` if it cannot.
    """
    if isinstance(decoder, StagedDecoder):
        if decoder.fitted.ndim:
            raise InputError(
                "the decoders of several policies were given, and a run begins with one: give that of one policy, such "
                "as gorl.of_seed(policies, 0).decoder."
            )
        if not bool(decoder.fitted):
            raise InputError("the decoder that was given has not been fitted: give one that has, or none.")
        decoder = decoder.decoder
    if (decoder is not None) != config.starts_fitted:
        if decoder is None:
            raise InputError(
                "the config says that the run begins with a decoder, and none was given: give one, as decoder=... of "
                "gorl.train or --decoder of the command line, or set starts_fitted to false."
            )
        raise InputError(
            "a decoder was given, and the config says that the run begins without one: set starts_fitted to true, so "
            "that whoever continues the run knows it, too."
        )
    if decoder is None:
        return None
    empty, key = RunningStatistics.empty(env.observation_size), jax.random.key(0)
    like = eqx.filter_eval_shape(config.decoder.init, empty, env.action_size, key)
    if type(decoder) is not type(like):
        raise InputError(
            f"the decoder that was given is a {type(decoder).__name__}, and that of the config is a "
            f"{type(like).__name__}: set decoder to what the given one was made with."
        )
    given, wanted = described(decoder), described(like)
    different = differing(wanted, given)
    if different or jax.tree.structure(decoder) != jax.tree.structure(like):
        what = "differ in a setting, such as the solver"
        if different:
            is_here, wants = (of.get(different[0], "not there") for of in (given, wanted))
            what = f"differ: {different[0].lstrip('.')} is {is_here} and should be {wants}"
        raise InputError(
            f"the decoder that was given and that of the config {what}. Set decoder to what the given one was made "
            "with, and take one that was fitted for this environment."
        )
    return decoder


def check_memory(state: TrainState, mesh: Mesh | None) -> None:
    """Checks that the devices can hold the state of all seeds twice, as every step does.

    **Arguments:**

    - `state`: the state, or its shapes.
    - `mesh`: the devices. Those that share the environments of a seed each hold everything else of it.

    **Raises:**

    `gorl.InputError` if they cannot.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sizes = {jax.tree_util.keystr(path): leaf.size * leaf.dtype.itemsize for path, leaf in leaves}
    num_seeds, copies = state.key.size, 1 if mesh is None else mesh.shape[ENVIRONMENTS]
    of_envs = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.rollout_state))
    size = copies * (sum(sizes.values()) - of_envs) + of_envs
    memory = memory_of(mesh)
    if 2 * size > memory:
        seeds = f"{num_seeds:,} seed{'s' * (num_seeds > 1)}"
        raise InputError(
            f"the state of {seeds} takes {size / 2**20:,.0f} MiB, and every step holds it twice, in a memory of "
            f"{memory / 2**20:,.0f} MiB: train fewer seeds together, or make it smaller; its largest array is "
            f"{max(sizes, key=sizes.__getitem__).lstrip('.')}."
        )


def check_callback(on_evaluation: Any) -> None:
    """Checks that a compiled run can call a callback.

    **Raises:**

    `gorl.InputError` if it cannot.
    """
    if on_evaluation is not None and not callable(on_evaluation):
        raise InputError(f"on_evaluation must be a function of a gorl.EvaluationRecord, not {on_evaluation!r}.")
    try:
        hash((*jax.tree.leaves(on_evaluation), jax.tree.structure(on_evaluation)))  # as jit finds a program again
    except TypeError as error:
        raise InputError(
            f"on_evaluation is a {type(on_evaluation).__name__}, which has no hash or holds arrays: give a function "
            "that calls it, and define that function once."
        ) from error
