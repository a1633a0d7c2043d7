"""Evaluating: what a policy earns in whole episodes."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._env import EnvConfig, Environment, Episode, Episodes, load
from ._errors import InputError
from ._policy import Policy
from ._types import RandomKey


def evaluate(
    env: EnvConfig | Environment | str,
    policy: Policy,
    key: RandomKey,
    *,
    num_episodes: int = 128,
    stochastic: bool = False,
) -> Float[Array, " episodes"]:
    """The return of a policy in each of several fresh episodes.

    **Arguments:**

    - `env`: the environment: `config.env`, a name, or an environment itself.
    - `policy`: who acts.
    - `key`: decides the start states, and the latents if they are drawn.
    - `num_episodes`: how many episodes, all side by side.
    - `stochastic`: draw latents from the encoder, rather than taking its mode.

    **Returns:**

    The undiscounted sum of the rewards of each episode, up to its end or its time limit.

    **Raises:**

    `gorl.InputError` if the environment is unknown, the policy was made for one of other sizes, or `num_episodes` is
    less than 1.
    """
    if num_episodes < 1:
        raise InputError(f"num_episodes must be at least 1, not {num_episodes}.")
    config = env if isinstance(env, EnvConfig) else EnvConfig(env)  # pyright: ignore[reportArgumentType]
    episodes = load(config)
    policy_sizes = (policy.observation_size, policy.action_size)
    sizes = (episodes.observation_size, episodes.action_size)
    if policy_sizes != sizes:
        raise InputError(
            f"this policy was made for observations and actions of sizes {policy_sizes}, and those of {config} are "
            f"{sizes}: give the environment that it was trained on."
        )
    return _evaluate(episodes, policy, key, num_episodes, stochastic)


@eqx.filter_jit
def _evaluate(
    episodes: Episodes, policy: Policy, key: RandomKey, num_episodes: int, stochastic: bool
) -> Float[Array, " episodes"]:
    return episode_returns(episodes, policy, key, num_episodes, stochastic)


def episode_returns(
    episodes: Episodes, policy: Policy, key: RandomKey, num_episodes: int, stochastic: bool = False
) -> Float[Array, " episodes"]:
    """[`evaluate`][] for an environment that has been loaded and checked."""
    start_key, step_key = jax.random.split(key)

    def act(observation: Float[Array, " observation"], key: RandomKey) -> Float[Array, " action"]:
        return policy(observation, key) if stochastic else policy.mode(observation)

    def step(
        carry: tuple[Episode, Bool[Array, " episodes"], Float[Array, " episodes"]], key: RandomKey
    ) -> tuple[tuple, None]:
        episode, over, total = carry
        actions = jax.vmap(act)(episode.observation, jax.random.split(key, num_episodes))
        episode, outcome = jax.vmap(episodes.step)(episode, actions)
        return (episode, over | episode.over, total + jnp.where(over, 0.0, outcome.reward)), None

    start = jax.vmap(episodes.start)(jax.random.split(start_key, num_episodes))
    carry = (start, start.over, jnp.zeros(num_episodes))
    (_, _, total), _ = jax.lax.scan(step, carry, jax.random.split(step_key, episodes.num_steps))
    return total
