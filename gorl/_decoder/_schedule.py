"""Noise schedules: how much of an action is left at each time of a diffusion."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import InputError, unknown_name

_COSINE_OFFSET = 0.008
_LINEAR_START, _LINEAR_END, _LINEAR_FIRST_TIME = 0.1, 20.0, 1e-3
_MAX_LOG_NOISE_LEVEL = 40.0  # the square of a noise level has to be a number in single precision
_NAMES = ("cosine", "linear")


class NoiseSchedule(eqx.Module):
    """What a diffusion leaves of an action: at time `t` of `[0, 1)` the point is
    `sqrt(ᾱ(t)) action + sqrt(1 - ᾱ(t)) noise`.

    **Arguments:**

    - `kind`: `"cosine"`, `"linear"`, or the values of ᾱ at the levels, from least noise to most.
    - `num_levels`: how many levels of noise there are, at the times `0, 1/num_levels, ..`.

    ??? cite "Reference"

        Nichol & Dhariwal (2021), *Improved Denoising Diffusion Probabilistic Models*, equation (17), for cosine;
        Song et al. (2021), *Score-Based Generative Modeling through SDEs*, equation (33), for linear: ᾱ is that of a
        rate that rises linearly from 0.1 to 20, and time 0 is their first one, 1e-3.
    """

    kind: str | tuple[float, ...] = eqx.field(static=True)
    num_levels: int = eqx.field(static=True)

    @property
    def times(self) -> Float[Array, " levels"]:
        """The times of the levels, from least noise to most."""
        return jnp.arange(self.num_levels) / self.num_levels

    def alpha_bar(self, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """ᾱ, the share of the action's variance that is left at `time`."""
        if self.kind == "cosine":
            return jnp.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * jnp.pi / 2) ** 2
        if self.kind == "linear":
            t = _LINEAR_FIRST_TIME + (1 - _LINEAR_FIRST_TIME) * time
            return jnp.exp(-_LINEAR_START * t - 0.5 * (_LINEAR_END - _LINEAR_START) * t**2)
        return 1 / (1 + jnp.exp(2 * jnp.interp(time, self.times, self._log_noise_levels)))

    def noise_level(self, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """`sqrt((1 - ᾱ)/ᾱ)`, the noise on an action that is left at its own scale."""
        alpha_bar = self.alpha_bar(time)
        return jnp.sqrt((1 - alpha_bar) / alpha_bar)

    def time(self, noise_level: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The time of a noise level; 0 for one below the first."""
        if self.kind == "cosine":
            angle = jnp.arctan(noise_level)  # ᾱ = cos² of it
            time = angle * 2 / jnp.pi * (1 + _COSINE_OFFSET) - _COSINE_OFFSET
        elif self.kind == "linear":
            exponent = jnp.log1p(noise_level**2)  # -log ᾱ
            slope = _LINEAR_END - _LINEAR_START
            # The positive root of slope t²/2 + start t = exponent, in the form that does not cancel.
            t = 2 * exponent / (_LINEAR_START + jnp.sqrt(_LINEAR_START**2 + 2 * slope * exponent))
            time = (t - _LINEAR_FIRST_TIME) / (1 - _LINEAR_FIRST_TIME)
        else:
            time = jnp.interp(jnp.log(jnp.maximum(noise_level, 1e-12)), self._log_noise_levels, self.times)
        return jnp.maximum(time, 0.0)

    @property
    def _log_noise_levels(self) -> Float[np.ndarray, " levels"]:
        alpha_bars = np.asarray(self.kind, np.float64)
        with np.errstate(all="ignore"):
            return (0.5 * (np.log1p(-alpha_bars) - np.log(alpha_bars))).astype(np.float32)

    def check(self) -> None:
        """Raises `gorl.InputError` for an unknown name, or values that are no schedule."""
        if isinstance(self.kind, str):
            if self.kind not in _NAMES:
                raise unknown_name("noise schedule", self.kind, _NAMES)
            return
        if len(self.kind) != self.num_levels:
            raise InputError(
                f"decoder.schedule has {len(self.kind)} values for decoder.num_levels = {self.num_levels}: "
                "give one for each level."
            )
        levels = self._log_noise_levels
        if not np.all(np.abs(levels) < _MAX_LOG_NOISE_LEVEL) or not np.all(np.diff(levels) > 0):
            raise InputError("decoder.schedule must fall from level to level, clearly, and strictly between 1 and 0.")
