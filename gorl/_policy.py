"""A policy: an encoder that chooses a latent, and a decoder that turns it into an action."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ._decoder import AbstractDecoder
from ._density import log_density, sample_with_log_density
from ._errors import InputError
from ._learner import AbstractEncoder
from ._shapes import check_vector
from ._types import RandomKey


@final
class StagedDecoder(AbstractDecoder):
    """A decoder that is the identity until it has been fitted.

    The identity is a branch, not an untrained network: it costs nothing in the first stage, and the untrained network
    of a decoder need not be the identity (that of a diffusion model is not).

    **Arguments:**

    - `decoder`: the decoder.
    - `fitted`: whether it has been fitted.
    """

    decoder: AbstractDecoder
    fitted: Bool[Array, ""]

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """The decoder's action; `latent` itself until the decoder has been fitted."""
        return jax.lax.cond(self.fitted, lambda: self.decoder.decode(observation, latent), lambda: latent)

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The loss of the decoder."""
        return self.decoder.loss(observation, latent, action, key)


@final
class Policy(eqx.Module):
    """`π(action | observation) = ∫ decoder(action | observation, latent) encoder(latent | observation) dlatent`.

    Unbatched: `jax.vmap(policy.mode)(observations)` takes many observations. The policies of several seeds are one
    `Policy` with a leading axis, of which [`gorl.of_seed`][] takes one.

    **Arguments:**

    - `encoder`: chooses the latent.
    - `decoder`: turns the latent into an action before `tanh`.
    - `observation_size`, `action_size`: the lengths of observations and actions.

    **Raises:**

    `gorl.InputError`, when a method gets anything but one observation of that length, or these are several policies.

    ??? cite "Reference"

        GoRL, arXiv 2512.02581.
    """

    encoder: AbstractEncoder
    decoder: AbstractDecoder
    observation_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    @eqx.filter_jit
    def __call__(self, observation: Float[Array, " observation"], key: RandomKey) -> Float[Array, " action"]:
        """Samples an action in `[-1, 1]`."""
        self._check(observation, "jax.vmap(policy)(observations, keys)")
        return jnp.tanh(self.sample(observation, key)[2])

    @eqx.filter_jit
    def mode(self, observation: Float[Array, " observation"]) -> Float[Array, " action"]:
        """The action in `[-1, 1]` of the encoder's mode."""
        self._check(observation, "jax.vmap(policy.mode)(observations)")
        return jnp.tanh(self.decoder.decode(observation, self.encoder.mode(observation)))

    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " action"], PyTree[Array], Float[Array, " action"]]:
        """Samples a latent and decodes it.

        **Returns:**

        The latent; the encoder's extras, such as its log-probability; and the action before `tanh`.
        """
        self._check(observation, "jax.vmap(policy.sample)(observations, keys)")
        latent, extras = self.encoder.sample(observation, key)
        return latent, extras, self.decoder.decode(observation, latent)

    @eqx.filter_jit
    def log_density(
        self, observation: Float[Array, " observation"], action: Float[Array, " action"]
    ) -> Float[Array, ""]:
        """The log-density of an action, with respect to the volume of `[-1, 1]^n`.

        It is that of the policy as it samples, steps of the solver included, by the change of variables from the noise:
        the action is traced back to its noise by Levenberg-Marquardt from several starts, and the Jacobian is exact.
        The sampler is taken to be one to one, as the flow is that it integrates.

        **Arguments:**

        - `observation`: one observation.
        - `action`: in `[-1, 1]`; beyond 1 - 1e-6 it counts as 1 - 1e-6, as `tanh` never arrives.

        **Returns:**

        The log-density, in nats; NaN where no noise was found that leads to the action.

        **Raises:**

        `gorl.InputError` for a policy whose noise has more numbers than an action, as that of DPPO has.

        ??? cite "Reference"

            Chen et al. (2018), *Neural Ordinary Differential Equations*, section 4, has the change of variables of the
            flow without steps.
        """
        self._check(observation, "jax.vmap(policy.log_density)(observations, actions)")
        return log_density(self, observation, action)

    @eqx.filter_jit
    def sample_with_log_density(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        """Samples an action in `[-1, 1]`, and its log-density, which costs only the Jacobian.

        The mean of the negative log-density over draws is an unbiased estimate of the entropy. Raises as `log_density`.
        """
        self._check(observation, "jax.vmap(policy.sample_with_log_density)(observations, keys)")
        return sample_with_log_density(self, observation, key)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes of the policies of several seeds; of one policy there are none."""
        return self.encoder.statistics.count.shape

    def check_single(self) -> None:
        """Checks that this is one policy.

        **Raises:**

        `gorl.InputError` if these are the policies of several seeds.
        """
        if self.batch_shape:
            raise InputError(
                f"these are policies of shape {self.batch_shape}, and one is needed: give one, such as "
                "gorl.of_seed(policies, 0), or map over all of them by jax.vmap."
            )

    def _check(self, observation: Float[Array, " observation"], of_several: str) -> None:
        self.check_single()
        check_vector("the observation of this policy", observation, self.observation_size, of_several)
