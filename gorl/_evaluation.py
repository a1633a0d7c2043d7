"""Evaluation: whole episodes of a policy, and their returns."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from ._backend import all_rows, own_rows
from ._divergence import Divergence, first_of
from ._env import EnvConfig, Environment, EpisodeState, EpisodicEnv, load_environment
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
    """The return of a policy in each of several new episodes.

    **Arguments:**

    - `env`: the environment: `config.env`, a name, or an environment itself.
    - `policy`: the policy.
    - `key`: decides the start states, and the latents if they are sampled.
    - `num_episodes`: the number of parallel episodes.
    - `stochastic`: sample latents from the encoder; otherwise its mode acts.

    **Returns:**

    The undiscounted sum of the rewards of each episode, up to its end or its time limit.

    **Raises:**

    `gorl.InputError` if the environment is unknown, the policy was made for one of other sizes, or `num_episodes` is
    less than 1.
    """
    return evaluate_with_terms(env, policy, key, num_episodes=num_episodes, stochastic=stochastic)[0]


def evaluate_with_terms(
    env: EnvConfig | Environment | str,
    policy: Policy,
    key: RandomKey,
    *,
    num_episodes: int,
    stochastic: bool,
) -> tuple[Float[Array, " episodes"], dict[str, Float[Array, " episodes"]]]:
    """As [`evaluate`][], and what the environment reports of each episode by name; see `Played.terms`."""
    check_counts(num_episodes=num_episodes)
    return _episode_returns(load_for(env, policy), policy, key, num_episodes, stochastic)


class Trajectories(eqx.Module):
    """Parallel episodes, step by step. After the end of an episode its rewards are 0, and the rest means nothing.

    **Attributes:**

    - `observation`: before each action.
    - `action`: in `[-1, 1]`, as the environment receives it.
    - `reward`: of each action.
    - `length`: the number of actions in each episode.
    """

    observation: Float[Array, "episodes time observation"]
    action: Float[Array, "episodes time action"]
    reward: Float[Array, "episodes time"]
    length: Int[Array, " episodes"]


def play(
    env: EnvConfig | Environment | str,
    policy: Policy,
    key: RandomKey,
    *,
    num_episodes: int = 1,
    stochastic: bool = False,
    num_steps: int | None = None,
) -> Trajectories:
    """The steps of a policy in each of several new episodes.

    They are the episodes of `gorl.evaluate` for the same environment, policy, key, `num_episodes` and `stochastic`.

    **Arguments:**

    - `env`: the environment: `config.env`, a name, or an environment itself.
    - `policy`: the policy.
    - `key`: decides the start states, and the latents if they are sampled.
    - `num_episodes`: the number of parallel episodes.
    - `stochastic`: sample latents from the encoder; otherwise its mode acts.
    - `num_steps`: the largest number of actions; `None` for whole episodes.

    **Returns:**

    Every step of the episodes. The time axis has the length of the time limit or `num_steps`, whichever is less.

    **Raises:**

    `gorl.InputError` if the environment is unknown, the policy was made for one of other sizes, or a number is less
    than 1.
    """
    check_counts(num_episodes=num_episodes, num_steps=num_steps)
    return _trajectories(load_for(env, policy), policy, key, num_episodes, num_steps, stochastic)


def check_counts(**counts: int | None) -> None:
    """Checks that every number that is given is at least 1.

    **Raises:**

    `gorl.InputError`
    """
    for name, number in counts.items():
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, not {number}.")


def load_for(env: EnvConfig | Environment | str, policy: Policy) -> EpisodicEnv:
    """Loads an environment for a policy to act in.

    **Raises:**

    `gorl.InputError` if the environment is unknown, or the policy was made for one of other sizes, or there are
    several policies.
    """
    policy.check_single()
    config = env if isinstance(env, EnvConfig) else EnvConfig(env)  # pyright: ignore[reportArgumentType]
    loaded = load_environment(config)
    policy_sizes = (policy.observation_size, policy.action_size)
    sizes = (loaded.observation_size, loaded.action_size)
    if policy_sizes != sizes:
        raise InputError(
            f"this policy was made for observations and actions of sizes {policy_sizes}, and those of {config} are "
            f"{sizes}: give the environment that it was trained on."
        )
    return loaded


class Played(eqx.Module):
    """Parallel episodes that have been played.

    **Attributes:**

    - `returns`: the sum of the rewards of each.
    - `divergence`: what was first not finite in each; a `Divergence`.
    - `length`: the number of actions in each.
    - `terms`: what the environment reports of each: sums of `"reward/NAME"` and `"terminated/NAME"`, and means over
        the steps of `"measure/NAME"`.
    - `seen`: what `see` returned for every step.
    - `last`: the state of each after the last step. An episode that is done is stepped on, but nothing of it counts.
    """

    returns: Float[Array, " episodes"]
    divergence: Int[Array, " episodes"]
    length: Int[Array, " episodes"]
    terms: dict[str, Float[Array, " episodes"]]
    seen: PyTree[Shaped[Array, "time episodes ..."]]
    last: EpisodeState


def play_episodes(
    env: EpisodicEnv,
    policy: Policy,
    key: RandomKey,
    num_episodes: int,
    num_steps: int | None = None,
    stochastic: bool = False,
    see: Callable[[EpisodeState, Array, Array], PyTree[Array]] = lambda episode, action, reward: (),
) -> Played:
    """Plays episodes of an environment that has been loaded and checked.

    **Arguments:**

    - `see`: what to keep of one step, given the episode before it, the action and the reward. Nothing else gets a time
        axis.

    The others are those of [`play`][].
    """
    start_key, step_key = jax.random.split(key)

    def act(observation: Float[Array, " observation"], key: RandomKey) -> Float[Array, " action"]:
        return policy(observation, key) if stochastic else policy.mode(observation)

    def step(
        carry: tuple[
            EpisodeState,
            Bool[Array, " episodes"],
            Float[Array, " episodes"],
            Int[Array, " episodes"],
            Int[Array, " episodes"],
            dict[str, Float[Array, " episodes"]],
        ],
        key: RandomKey,
    ) -> tuple[tuple, PyTree[Array]]:
        before, done, total, divergence, length, terms = carry
        actions = jax.vmap(act)(before.observation, own_rows(jax.random.split(key, num_episodes), num_episodes))
        after, result = jax.vmap(env.step)(before, actions)
        reward = jnp.where(done, 0.0, result.reward)
        found = jax.vmap(_divergence)(before.observation, reward)
        divergence = jnp.where(done | (divergence != Divergence.NONE), divergence, found)
        terms = {name: terms[name] + jnp.where(done, 0.0, term) for name, term in result.terms.items()}
        carry = (after, done | after.done, total + reward, divergence, jnp.where(done, length, length + 1), terms)
        return carry, jax.vmap(see)(before, actions, reward)

    start = jax.vmap(env.start)(own_rows(jax.random.split(start_key, num_episodes), num_episodes))
    zeros = jnp.zeros(start.done.size)
    empty = jnp.full(start.done.size, int(Divergence.NONE), jnp.int32)
    terms = {name: zeros for name in env.term_names}
    carry = (start, start.done, zeros, empty, zeros.astype(jnp.int32), terms)
    # As many keys as a whole episode takes, so that a shorter one begins like it.
    step_keys = jax.random.split(step_key, env.num_steps)[:num_steps]
    (last, _, total, divergence, length, terms), seen = jax.lax.scan(step, carry, step_keys)
    terms = {
        name: term / (env.action_repeat * length) if name.startswith("measure/") else term
        for name, term in terms.items()
    }
    total, divergence, length, terms, last = all_rows((total, divergence, length, terms, last), num_episodes)
    return Played(total, divergence, length, terms, all_rows(seen, num_episodes, axis=1), last)


def _divergence(observation: Float[Array, " observation"], reward: Float[Array, ""]) -> Int[Array, ""]:
    """What of one step is not finite: the observation or the reward."""
    return first_of(
        (~jnp.all(jnp.isfinite(observation)), Divergence.OBSERVATION), (~jnp.isfinite(reward), Divergence.REWARD)
    )


@eqx.filter_jit
def _episode_returns(
    env: EpisodicEnv, policy: Policy, key: RandomKey, num_episodes: int, stochastic: bool
) -> tuple[Float[Array, " episodes"], dict[str, Float[Array, " episodes"]]]:
    played = play_episodes(env, policy, key, num_episodes, stochastic=stochastic)
    return played.returns, played.terms


@eqx.filter_jit
def _trajectories(
    env: EpisodicEnv, policy: Policy, key: RandomKey, num_episodes: int, num_steps: int | None, stochastic: bool
) -> Trajectories:
    def see(before: EpisodeState, action: Array, reward: Array) -> tuple[Array, Array, Array]:
        return before.observation, action, reward

    played = play_episodes(env, policy, key, num_episodes, num_steps, stochastic, see)
    observation, action, reward = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), played.seen)
    return Trajectories(observation, action, reward, played.length)
