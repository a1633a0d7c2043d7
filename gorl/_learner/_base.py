"""What a learner is: a way of training a policy over latents."""

import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._errors import InputError
from .._statistics import RunningStatistics
from .._types import RandomKey, Real

LearnerState = TypeVar("LearnerState", bound=eqx.Module)


class AbstractEncoder(eqx.Module):
    """A policy over latents, `π(latent | observation)`. Unbatched; `vmap` outside.

    Where there is no decoder, latents are actions before `tanh`, and an encoder is simply a policy.
    """

    statistics: eqx.AbstractVar[RunningStatistics]  # of observations, which it sees normalised

    @abc.abstractmethod
    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " latent"], PyTree[Array]]:
        """A latent, and whatever the learner wants to remember of how it was drawn."""

    @property
    @abc.abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the noise that a latent is made of."""

    @abc.abstractmethod
    def from_noise(
        self, observation: Float[Array, " observation"], noise: Float[Array, "..."]
    ) -> Float[Array, " latent"]:
        """The latent that noise of `noise_shape` becomes: if it is standard normal, one like those of `sample`."""

    def mode(self, observation: Float[Array, " observation"]) -> Float[Array, " latent"]:
        """The latent that the policy thinks best: the one that a noise of zero becomes."""
        return self.from_noise(observation, jnp.zeros(self.noise_shape))


class Experience(eqx.Module):
    """Steps in a row from several environments side by side."""

    observation: Float[Array, "time envs observation"]
    latent: Float[Array, "time envs latent"]
    extras: PyTree[Array]  # of each step, what the encoder wanted to be remembered
    action: Float[Array, "time envs action"]  # what the decoder made of the latent, before tanh
    reward: Float[Array, "time envs"]
    terminated: Bool[Array, "time envs"]
    truncated: Bool[Array, "time envs"]
    next_observation: Float[Array, "time envs observation"]  # what each step led to, even if the episode ended there


class AbstractLearner(eqx.Module, Generic[LearnerState]):
    """A way of training an encoder, as a value: its fields are its hyperparameters.

    A new learner is one file with a subclass of this. `LearnerState` is everything it carries from update to update:
    networks, optimiser state, statistics.
    """

    # How experience is gathered between two updates. Shapes depend on these, so they are static in every learner.
    num_envs: eqx.AbstractVar[int]
    unroll_length: eqx.AbstractVar[int]
    num_unrolls: eqx.AbstractVar[int]
    # Whether latents must be actions before tanh, so that the only decoder is the identity.
    on_actions: eqx.AbstractVar[bool]

    @property
    def steps_per_update(self) -> int:
        """Steps of experience between two updates, of all environments together."""
        return self.num_envs * self.unroll_length * self.num_unrolls

    @abc.abstractmethod
    def init(self, observation_size: int, latent_size: int, key: RandomKey) -> LearnerState:
        """A fresh memory. Where latents go through a decoder, its encoder is N(0, I) whatever the observation.

        Raises `gorl.InputError` for sizes that it cannot be made for.
        """

    @abc.abstractmethod
    def restart(
        self, learner_state: LearnerState, observation_size: int, latent_size: int, key: RandomKey
    ) -> LearnerState:
        """The memory to begin the next stage with: a fresh encoder, and whatever outlives a change of decoder."""

    @abc.abstractmethod
    def encoder(self, learner_state: LearnerState) -> AbstractEncoder:
        """The encoder that acts."""

    def evaluated_encoder(self, learner_state: LearnerState) -> AbstractEncoder:
        """The encoder that is evaluated, and kept if it is the best: the one that acts, if a learner has no better."""
        return self.encoder(learner_state)

    @abc.abstractmethod
    def update(
        self, learner_state: LearnerState, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[LearnerState, dict[str, Float[Array, ""]]]:
        """Learns from one batch of experience; also returns metrics, by name.

        `progress` is the share of the run that was over before, from 0 to 1: what decays goes by it.
        """

    @abc.abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics that `update` returns."""

    @abc.abstractmethod
    def check(self) -> None:
        """Checks what the declared range of each single field cannot say; raises `gorl.InputError`."""


def check_minibatches(num_minibatches: int, num_steps: int) -> None:
    """Checks that so many minibatches share out the steps of an update.

    **Raises:**

    `gorl.InputError` if they do not.
    """
    if num_steps % num_minibatches:
        raise InputError(
            f"learner.num_minibatches = {num_minibatches} does not divide the {num_steps} steps of an iteration "
            "(num_envs * unroll_length * num_unrolls): choose one that does."
        )
