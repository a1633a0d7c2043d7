"""The interface of learners and encoders."""

import abc
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .._errors import InputError
from .._statistics import RunningStatistics
from .._trainable import split_trainable
from .._types import RandomKey, Real

LearnerState = TypeVar("LearnerState", bound=eqx.Module)


class AbstractEncoder(eqx.Module):
    """A policy over latents, `π(latent | observation)`. Unbatched; `vmap` outside.

    Without a decoder, latents are actions before `tanh`, and the encoder is the whole policy.

    **Attributes:**

    - `statistics`: running statistics of observations, by which the encoder normalises its input.
    """

    statistics: eqx.AbstractVar[RunningStatistics]

    @abc.abstractmethod
    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " latent"], PyTree[Array]]:
        """Samples a latent. Also returns extras that the learner needs later, such as its log-probability."""

    @property
    @abc.abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the noise that [`from_noise`][] takes."""

    @abc.abstractmethod
    def from_noise(
        self, observation: Float[Array, " observation"], noise: Float[Array, "..."]
    ) -> Float[Array, " latent"]:
        """Maps standard normal noise of `noise_shape` to a latent with the distribution of `sample`."""

    def mode(self, observation: Float[Array, " observation"]) -> Float[Array, " latent"]:
        """The latent of zero noise, by which the policy is evaluated."""
        return self.from_noise(observation, jnp.zeros(self.noise_shape))


class Experience(eqx.Module):
    """Consecutive steps of parallel environments.

    **Attributes:**

    - `observation`: before each action.
    - `latent`: the encoder's sample.
    - `extras`: the encoder's, such as log-probabilities.
    - `action`: the decoded latent, before `tanh`.
    - `reward`: of each action.
    - `terminated`, `truncated`: whether the episode ended with the step, and why.
    - `next_observation`: after each action, before any restart.
    - `critic_observation`, `next_critic_observation`: the same as critics see it; `None` where they see what the policy
        sees.
    """

    observation: Float[Array, "time envs observation"]
    latent: Float[Array, "time envs latent"]
    extras: PyTree[Array]
    action: Float[Array, "time envs action"]
    reward: Float[Array, "time envs"]
    terminated: Bool[Array, "time envs"]
    truncated: Bool[Array, "time envs"]
    next_observation: Float[Array, "time envs observation"]
    critic_observation: Float[Array, "time envs critic_observation"] | None = None
    next_critic_observation: Float[Array, "time envs critic_observation"] | None = None

    def for_critic(self) -> tuple[Float[Array, "time envs seen"], Float[Array, "time envs seen"]]:
        """What critics see before and after each action."""
        if self.critic_observation is None or self.next_critic_observation is None:
            return self.observation, self.next_observation
        return self.critic_observation, self.next_critic_observation

    @property
    def observations(self) -> tuple[Array, ...]:
        """Everything that the policy and critics see."""
        return (self.observation, self.next_observation, *self.for_critic())


class AbstractLearner(eqx.Module, Generic[LearnerState]):
    """An algorithm that trains an encoder. Its fields are its hyperparameters.

    A new learner is one file with a subclass of this. `LearnerState` is everything that it carries from update to
    update: networks, optimiser state, statistics.

    **Attributes:**

    - `num_envs`: the number of parallel environments.
    - `unroll_length`, `num_unrolls`: their product is the number of steps of each environment between two updates.
    - `on_actions`: whether latents are actions before `tanh`, so that the only decoder is the identity.
    """

    # Shapes depend on these, so they are static in every learner.
    num_envs: eqx.AbstractVar[int]
    unroll_length: eqx.AbstractVar[int]
    num_unrolls: eqx.AbstractVar[int]
    on_actions: eqx.AbstractVar[bool]

    @property
    def steps_per_update(self) -> int:
        """The number of steps between two updates, over all environments."""
        return self.num_envs * self.unroll_length * self.num_unrolls

    @abc.abstractmethod
    def init(
        self, observation_size: int, latent_size: int, key: RandomKey, critic_observation_size: int | None = None
    ) -> LearnerState:
        """A fresh state. With a decoder, its encoder is N(0, I) for every observation.

        `critic_observation_size` is the length of what critics see, `None` where they see what the policy sees. Raises
        `gorl.InputError` for sizes that the learner does not support.
        """

    @abc.abstractmethod
    def restart(
        self,
        learner_state: LearnerState,
        observation_size: int,
        latent_size: int,
        key: RandomKey,
        critic_observation_size: int | None = None,
    ) -> LearnerState:
        """The state that the next stage begins with: a fresh encoder, and what stays valid under another decoder."""

    @abc.abstractmethod
    def encoder(self, learner_state: LearnerState) -> AbstractEncoder:
        """The encoder that acts in training."""

    @abc.abstractmethod
    def evaluated_encoder(self, learner_state: LearnerState) -> AbstractEncoder:
        """The encoder that is evaluated and may become the best policy: the one that acts, or an average of it."""

    @abc.abstractmethod
    def update(
        self, learner_state: LearnerState, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[LearnerState, dict[str, Float[Array, ""]]]:
        """Learns from one batch of experience. Also returns metrics by name.

        `progress` is the share of the run that is done, from 0 to 1. Schedules, such as that of a learning rate, go by
        it.
        """

    @abc.abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics that `update` returns."""

    @abc.abstractmethod
    def check(self) -> None:
        """Checks what the declared ranges of single fields cannot; raises `gorl.InputError`."""


@runtime_checkable
class HasCritic(Protocol):
    """The state of a learner with critics.

    **Attributes:**

    - `encoder`: the policy.
    - `critic_statistics`: running statistics of what critics see; `None` where they see what the policy sees, whose
        statistics the encoder has.
    """

    encoder: Any
    critic_statistics: RunningStatistics | None


@runtime_checkable
class HasAveragedEncoder(Protocol):
    """The state of a learner that evaluates an average of its policy.

    **Attributes:**

    - `encoder`: the policy.
    - `averaged_encoder`: an exponential moving average of the encoder's weights.
    """

    encoder: Any
    averaged_encoder: Any


StateWithCritic = TypeVar("StateWithCritic", bound=HasCritic)
StateWithAverage = TypeVar("StateWithAverage", bound=HasAveragedEncoder)


def fresh_critic_statistics(critic_observation_size: int | None) -> RunningStatistics | None:
    """Statistics of nothing; `None` where critics see what the policy sees."""
    return None if critic_observation_size is None else RunningStatistics.empty(critic_observation_size)


def statistics_for_critic(learner_state: HasCritic) -> RunningStatistics:
    """The statistics by which critics normalise their input."""
    of_critic = learner_state.critic_statistics
    return learner_state.encoder.statistics if of_critic is None else of_critic


def with_updated_statistics(learner_state: StateWithCritic, experience: Experience) -> StateWithCritic:
    """`learner_state` with its running statistics brought up to date with `experience`."""
    statistics = learner_state.encoder.statistics.update(experience.observation)
    learner_state = eqx.tree_at(lambda state: state.encoder.statistics, learner_state, statistics)
    if learner_state.critic_statistics is None:
        return learner_state
    statistics = learner_state.critic_statistics.update(experience.for_critic()[0])
    return eqx.tree_at(lambda state: state.critic_statistics, learner_state, statistics)


def moved(
    optimiser: optax.GradientTransformation, part: PyTree, gradient: PyTree, state: PyTree, scale: Real
) -> tuple[Any, PyTree]:
    """Moves `part` by `scale` times the optimiser's step, and returns the state of the optimiser as well."""
    updates, state = optimiser.update(gradient, state)
    return eqx.apply_updates(part, optax.tree.scale(scale, updates)), state


def with_averaged_encoder(learner_state: StateWithAverage, decay: Real) -> StateWithAverage:
    """`learner_state` with its averaged encoder moved towards the newest one, whose statistics it takes."""
    newest, rest = split_trainable(learner_state.encoder)
    before, _ = split_trainable(learner_state.averaged_encoder)
    mixed: Any = optax.incremental_update(newest, before, 1 - decay)  # pyright: ignore[reportArgumentType]
    return eqx.tree_at(lambda state: state.averaged_encoder, learner_state, eqx.combine(mixed, rest))


def check_minibatches(num_minibatches: int, num_steps: int) -> None:
    """Checks that the number of minibatches divides the steps of an update.

    **Raises:**

    `gorl.InputError` if it does not.
    """
    if num_steps % num_minibatches:
        raise InputError(
            f"learner.num_minibatches = {num_minibatches} does not divide the {num_steps} steps of an iteration "
            "(num_envs * unroll_length * num_unrolls): choose one that does."
        )
