"""Export of policies as programs that run without this library."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from ._decoder import IdentityDecoder
from ._env import EnvConfig, description
from ._errors import InputError, unknown_name
from ._evaluation import load_for
from ._ode import Integrator
from ._policy import Policy, StagedDecoder

_DRAWS = ("latent", "seed")
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_stablehlo(policy: Policy, draw: str = "latent") -> bytes:
    """Writes a policy as StableHLO, which JAX reads (with flatbuffers installed).

    **Arguments:**

    - `policy`: one policy.
    - `draw`: the source of randomness: `"latent"` for standard normal noise of the shape
        `policy.encoder.noise_shape`, of which zeros give `policy.mode(observation)`; `"seed"` for a number, which gives
        `policy(observation, jax.random.key(seed))`.

    **Returns:**

    A program for `jax.export.deserialize`, whose `call` takes observations `float32[batch, observation_size]` and
    either latents `float32[batch, *noise_shape]` or seeds `uint32[batch]` to actions `float32[batch, action_size]` in
    `[-1, 1]`. The batch can have any size. It runs on CPUs, GPUs and TPUs, and JAX promises to read it for six months.

    **Raises:**

    `gorl.InputError` if `policy` holds several policies, or calls back to Python, or there is no such `draw`.
    """
    act, inputs = _program(policy, draw)
    (batch,) = jax.export.symbolic_shape("batch")
    batched = [jax.ShapeDtypeStruct((batch, *like.shape), like.dtype) for like in inputs.values()]
    try:
        with _without_source_locations():
            exported = jax.export.export(jax.jit(jax.vmap(act)), platforms=_PLATFORMS)(*batched)
    except NotImplementedError as error:
        raise InputError(
            f"StableHLO cannot hold everything that this policy does ({error}): do without callbacks and error checks."
        ) from error
    return bytes(exported.serialize())


def export_onnx(policy: Policy, env: EnvConfig | None = None) -> bytes:
    """Writes a policy as ONNX, which onnxruntime and many other programs read.

    It may contain networks of your own that consist of the usual layers for vectors.

    **Arguments:**

    - `policy`: one policy, whose integrators take fixed steps.
    - `env`: the environment that the policy was trained in. What a controller has to know of it goes into the metadata
        of the file, each value as JSON: `task`, `observation_part`, `control_timestep` in seconds, and for a MuJoCo
        model the `actuators` and `joints` in the order of actions, their `control_range`, `kp` and `kd`, `pose` and
        `action_scale` (joint targets are `pose + action_scale * action`), `commands`.

    **Returns:**

    The content of an `.onnx` file. Its inputs are `observation`, `float32[batch, observation_size]`, and `latent`,
    `float32[batch, *noise_shape]`, which is standard normal noise; zeros give `policy.mode(observation)`. Its output is
    `action`, `float32[batch, action_size]` in `[-1, 1]`. The batch can have any size.

    **Raises:**

    `gorl.InputError` if `policy` holds several policies, or adapts its steps, or does something else that ONNX is not
    written for here; if `env` is unknown or of other sizes; or if onnx is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("ONNX takes the package onnx, which is not installed: pip install 'gorl[onnx]'.")
    from ._onnx import to_onnx

    act, inputs = _program(policy, "latent")
    if _adapts_steps(policy):
        raise InputError(
            "ONNX is not written for a policy that adapts its steps to what it sees: leave decoder.rtol and "
            "decoder.atol out for given steps, or export to StableHLO."
        )
    words = (
        "A policy trained by gorl. observation: as the environment gives it; latent: standard normal noise; zeros give "
        "the mode."
    )
    metadata = {} if env is None else description(env, load_for(env, policy))
    return to_onnx(act, inputs, "action", words, metadata)


@contextlib.contextmanager
def _without_source_locations() -> Iterator[None]:
    """Keeps paths of this machine out of the program, so that a policy is the same bytes everywhere."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def _program(policy: Policy, draw: str) -> tuple[Callable[..., Array], dict[str, jax.ShapeDtypeStruct]]:
    """The action of a policy as a function of one example, and its arguments by name."""
    if draw not in _DRAWS:
        raise unknown_name("draw", draw, _DRAWS)
    policy.check_single()
    policy = _without_stage(policy)

    def act_from_latent(
        observation: Float[Array, " observation"], latent: Float[Array, "..."]
    ) -> Float[Array, " action"]:
        return jnp.tanh(policy.decoder.decode(observation, policy.encoder.from_noise(observation, latent)))

    def act_from_seed(observation: Float[Array, " observation"], seed: UInt32[Array, ""]) -> Float[Array, " action"]:
        return policy(observation, jax.random.key(seed))

    observation = jax.ShapeDtypeStruct((policy.observation_size,), jnp.float32)
    if draw == "latent":
        latent = jax.ShapeDtypeStruct(policy.encoder.noise_shape, jnp.float32)
        return act_from_latent, {"observation": observation, "latent": latent}
    return act_from_seed, {"observation": observation, "seed": jax.ShapeDtypeStruct((), jnp.uint32)}


def _adapts_steps(policy: Policy) -> bool:
    """Whether a differential equation of a policy is solved in adapted steps."""
    parts = jax.tree.leaves(_without_stage(policy), is_leaf=lambda part: isinstance(part, Integrator))
    return any(isinstance(part, Integrator) and part.controller is not None for part in parts)


def _without_stage(policy: Policy) -> Policy:
    """The same policy without a decoder that has not been fitted, which would only fill the file."""
    decoder = policy.decoder
    if isinstance(decoder, StagedDecoder):
        decoder = decoder.decoder if decoder.fitted else IdentityDecoder()
    return Policy(policy.encoder, decoder, policy.observation_size, policy.action_size)
