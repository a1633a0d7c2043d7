"""Diffusion: a noise predictor fitted by DDPM's regression, sampled deterministically from the latent."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import InputError
from .._hyperparameters import float_field, static_field
from .._network import ConditionalField
from .._ode import Integrator, check_solver, integrator, solver_name
from .._shapes import check_vector
from .._statistics import RunningStatistics
from .._types import RandomKey, Real
from ._base import AbstractDecoder, AbstractDecoderConfig
from ._schedule import NoiseSchedule


@final
class DiffusionDecoder(AbstractDecoder):
    """Maps a latent, as the point of most noise, to an action by the probability-flow ODE.

    With `x` the point, the variables `y = x/sqrt(ᾱ)` and `s = sqrt((1 - ᾱ)/ᾱ)` turn that equation into
    `dy/ds = noise(x, t)`. An Euler step of it is a step of DDIM, so that DDIM is what `diffrax.Euler()` does here, and
    every other solver integrates the same model.

    **Arguments:**

    - `noise`: predicts the noise in a point.
    - `statistics`: statistics of the observations that it was fitted to.
    - `schedule`: of the noise.
    - `integrator`: how the equation is integrated; without a controller, in steps whose times are equally spaced, of
        which the last ends where there is no noise left.

    ??? cite "Reference"

        Ho et al. (2020), *Denoising Diffusion Probabilistic Models*, equation (14), for the loss; Song et al. (2021),
        *Denoising Diffusion Implicit Models*, equations (12) and (14), for sampling.
    """

    noise: ConditionalField
    statistics: RunningStatistics
    schedule: NoiseSchedule
    integrator: Integrator = Integrator()

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """The action at the end of the deterministic chain that starts at `latent`."""
        normalised = self.statistics.normalise_one(observation)
        schedule = self.schedule
        times = jnp.linspace(schedule.times[-1], 0.0, self.integrator.num_steps)
        levels = jnp.append(schedule.noise_level(times), 0.0)
        # diffrax runs forwards, and the noise level falls: its time is the negative level.
        field = jax.tree_util.Partial(_derivative, self.noise, schedule, normalised)
        return self.integrator(field, latent * jnp.sqrt(1 + levels[0] ** 2), -levels)

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The mean squared error of the noise predicted at a random level, where the noise is `latent`."""
        check_vector("the latent", latent, action.size)
        time = jax.random.randint(key, (), 0, self.schedule.num_levels) / self.schedule.num_levels
        alpha_bar = self.schedule.alpha_bar(time)
        point = jnp.sqrt(alpha_bar) * action + jnp.sqrt(1 - alpha_bar) * latent
        predicted = self.noise(self.statistics.normalise_one(observation), point, time)
        return jnp.mean((predicted - latent) ** 2)


def _derivative(
    noise: ConditionalField,
    schedule: NoiseSchedule,
    normalised: Float[Array, " observation"],
    negative_level: Float[Array, ""],
    scaled: Float[Array, " action"],
) -> Float[Array, " action"]:
    """The derivative of the scaled point by the negative level of the noise in it."""
    level = -negative_level
    point = scaled / jnp.sqrt(1 + level**2)
    return -noise(normalised, point, schedule.time(level))


def _schedule_kind(kind: Any) -> Any:
    """A name as it is, and any sequence of numbers as a tuple of them, which compares and goes to a file."""
    try:
        return kind if isinstance(kind, str) else tuple(float(value) for value in kind)
    except (TypeError, ValueError) as error:
        raise InputError(f"decoder.schedule must be a name or the values of ᾱ at the levels, not {kind!r}.") from error


@final
class Diffusion(AbstractDecoderConfig):
    """A diffusion decoder, with the values of the GoRL paper.

    **Arguments:**

    - `width`, `depth`: hidden layers of the noise predictor.
    - `num_frequencies`: frequencies that the time is embedded with.
    - `schedule`: of the noise: `"cosine"`, `"linear"`, or a tuple of the values of ᾱ, one for each level, falling.
    - `num_levels`: levels of noise that the predictor is fitted at. More leave less of the action at the last one,
        which sampling takes for pure noise.
    - `solver`: an explicit diffrax ODE solver or its name; `"Euler"` is DDIM.
    - `num_steps`: steps from noise to action.
    - `rtol`, `atol`: give both for steps that a PID controller adapts to these tolerances, instead of given ones.
    """

    width: int = static_field(32)
    depth: int = static_field(4)
    num_frequencies: int = static_field(4)
    schedule: str | tuple[float, ...] = eqx.field(static=True, converter=_schedule_kind, default="cosine")
    num_levels: int = static_field(10, at_least=2)
    solver: str = eqx.field(static=True, converter=solver_name, default="Euler")
    num_steps: int = static_field(10)
    rtol: Real | None = float_field(None, above=0)
    atol: Real | None = float_field(None, above=0)

    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> DiffusionDecoder:
        noise = ConditionalField.init(
            statistics.mean.shape[0], action_size, self.width, self.depth, self.num_frequencies, key=key
        )
        return DiffusionDecoder(
            noise,
            statistics,
            NoiseSchedule(self.schedule, self.num_levels),
            integrator(self.solver, self.num_steps, self.rtol, self.atol),
        )

    def check(self) -> None:
        check_solver(self.solver, self.rtol, self.atol)
        NoiseSchedule(self.schedule, self.num_levels).check()
