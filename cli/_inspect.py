"""`gorl inspect`: what a policy's distribution of actions is like along an episode."""

import dataclasses
import math
import pathlib

import diptest
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

import gorl

from ._figures import (
    SUFFIXES,
    action_density,
    action_distributions,
    check_finite,
    encode,
    num_modes,
    principal_component,
    states_along,
)
from ._process import as_json as to_json, check_output, plain_console, write_output
from ._run import Run
from ._tables import new_table


@dataclasses.dataclass(frozen=True)
class State:
    """The distribution of a policy's actions at one state. What is not known for a kind of policy is `None`.

    Before `tanh`, actions have a direction of largest variance: their first principal component.

    **Attributes:**

    - `step`: of the episode.
    - `entropy`, `entropy_error`: of the actions in `[-1, 1]`, in nats, and its standard error.
    - `non_gaussianity`: the Kullback-Leibler divergence of the actions before `tanh` from the Gaussian of their mean
        and covariance, in nats.
    - `modes`: peaks of the density along the component.
    - `dip_p_value`: of Hartigan's dip test along it: small where one mode is unlikely.
    - `variance_share`: of the actions' variance, along it.
    - `latent_divergence`: the divergence of the encoder from N(0, I), in nats.
    """

    step: int
    entropy: float | None
    entropy_error: float | None
    non_gaussianity: float | None
    modes: int
    dip_p_value: float
    variance_share: float
    latent_divergence: float | None


def inspect(
    run: Run, *, seed: int | None, key: int, num_states: int, num_actions: int, as_json: bool, out: pathlib.Path | None
) -> None:
    """Prints what the actions of a best policy are like at states along an episode.

    **Arguments:**

    - `run`: the run.
    - `seed`: of the policy; `None` for the best one.
    - `key`: decides the episode and the actions.
    - `num_states`: the number of states, evenly spaced along the episode.
    - `num_actions`: the number of actions that are sampled at each.
    - `as_json`: print a JSON object instead of a table.
    - `out`: a file for a picture of the densities as well; `None` for none.
    """
    suffix = None if out is None else check_output(out, SUFFIXES)
    policy, random_key = run.policy(seed), jax.random.key(key)
    states = along_episode(run.config.env, policy, random_key, num_states, num_actions)
    if out is not None and suffix is not None:
        figure = action_distributions(run.config.env, policy, random_key, num_states, num_actions)
        write_output(out, encode(figure, suffix))
    if as_json:
        content = {"env": str(run.config.env), "method": run.method, "key": key, "actions_per_state": num_actions}
        print(to_json(content | {"states": [dataclasses.asdict(state) for state in states]}), end="")
        return
    _show(f"{run.method} on {run.config.env}: {num_actions:,} actions at each state of an episode", states)
    if out is not None:
        print(out)


def along_episode(
    env: gorl.EnvConfig, policy: gorl.Policy, key: Key[Array, ""], num_states: int = 6, num_actions: int = 4096
) -> list[State]:
    """A policy's distributions of actions at states along an episode that it plays with sampled latents.

    The episode is that of [`action_distributions`][] for the same key.

    ??? cite "Reference"

        Hartigan & Hartigan (1985), *The Dip Test of Unimodality*. The estimate of the entropy is the mean of the
        negative log-density of the sampled actions, which is unbiased.
    """
    if num_states < 1 or num_actions < 100:
        raise gorl.InputError(f"give at least one state and 100 actions, not {num_states} and {num_actions}.")
    play_key, draw_key = jax.random.split(key)
    steps, observations = states_along(env, policy, play_key, num_states)
    is_known = policy.encoder.noise_shape == (policy.action_size,)
    drawn = _draw(policy, observations, draw_key, num_actions, is_known)
    check_finite(drawn)
    actions, densities, slopes = (None if leaf is None else np.asarray(leaf, np.float64) for leaf in drawn)
    assert actions is not None
    found = []
    for index, step in enumerate(steps):
        values, share = principal_component(actions[index])
        _, density = action_density(values)
        entropy = error = non_gaussianity = None
        if densities is not None and slopes is not None:
            surprise = slopes[index] - densities[index]
            entropy, error = float(surprise.mean()), float(surprise.std(ddof=1) / math.sqrt(num_actions))
            non_gaussianity = float(_gaussian_entropy(actions[index]) + densities[index].mean())
        found.append(
            State(
                step,
                entropy,
                error,
                non_gaussianity,
                num_modes(density, values),
                float(diptest.diptest(values)[1]),
                share,
                _latent_divergence(policy, observations[index]),
            )
        )
    return found


@eqx.filter_jit
def _draw(
    policy: gorl.Policy,
    observations: Float[Array, "states observation"],
    key: Key[Array, ""],
    num_actions: int,
    is_known: bool,
) -> tuple[Float[Array, "states actions size"], Float[Array, "states actions"] | None, Array | None]:
    """Actions before `tanh` at each state; where densities are known, their log-density, and that of `tanh`'s slope."""

    def of_one(
        observation: Float[Array, " observation"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " size"], Float[Array, ""] | None, Float[Array, ""] | None]:
        if not is_known:
            return policy.sample(observation, key)[2], None, None
        action, density = gorl.internal.sample_before_tanh(policy, observation, key)
        return action, density, gorl.internal.log_tanh_slope(action)

    def at_state(inputs: tuple[Array, Array]) -> tuple[Array, Array | None, Array | None]:
        observation, key = inputs
        return jax.vmap(lambda key: of_one(observation, key))(jax.random.split(key, num_actions))

    return jax.lax.map(at_state, (observations, jax.random.split(key, len(observations))))


def _gaussian_entropy(actions: Float[np.ndarray, "actions size"]) -> float:
    """The entropy, in nats, of the Gaussian of the actions' covariance."""
    covariance = np.atleast_2d(np.cov(actions, rowvar=False))
    return 0.5 * (actions.shape[1] * math.log(2 * math.pi * math.e) + float(np.linalg.slogdet(covariance)[1]))


def _latent_divergence(policy: gorl.Policy, observation: Float[Array, " observation"]) -> float | None:
    """`None` where there are no latents with a prior: without a decoder, and where the encoder is no Gaussian."""
    if isinstance(policy.decoder, gorl.IdentityDecoder) or not isinstance(policy.encoder, gorl.GaussianEncoder):
        return None
    mean, std = policy.encoder.distribution(observation)
    return float(gorl.internal.divergence(mean, std, jnp.zeros_like(mean), jnp.ones_like(std)))


def _show(title: str, states: list[State]) -> None:
    columns = ("step", "entropy", "±", "from Gaussian", "modes", "dip p", "variance", "from prior")
    table = new_table(*columns, title=title)
    table.caption = (
        "entropy: of actions in [-1, 1], with its standard error; from Gaussian: the divergence of actions before tanh "
        "from the Gaussian of the same moments; from prior: that of latents from N(0, I); all in nats. modes, and the "
        "p-value of the dip test for one mode: along the direction of largest variance, with its share"
    )
    table.caption_justify = "left"
    for state in states:
        table.add_row(
            str(state.step),
            _or_blank(state.entropy),
            _or_blank(state.entropy_error),
            _or_blank(state.non_gaussianity),
            str(state.modes),
            f"{state.dip_p_value:.3f}",
            f"{state.variance_share:.0%}",
            _or_blank(state.latent_divergence),
        )
    plain_console().print(table)


def _or_blank(number: float | None) -> str:
    return "" if number is None else f"{number:z.2f}"
