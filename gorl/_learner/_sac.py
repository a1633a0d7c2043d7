"""Soft actor-critic in the latent space: off-policy, with a replay buffer."""

import dataclasses
from typing import Any, final

import equinox as eqx
import flashbax
import jax
import jax.numpy as jnp
import optax
from flashbax.buffers.trajectory_buffer import TrajectoryBuffer
from jaxtyping import Array, Bool, Float, PyTree

from .._errors import InputError
from .._gaussian import log_over_prior
from .._hyperparameters import float_field, int_field, static_field
from .._network import mlp
from .._promotion import usual_promotion, usually_promoting
from .._trainable import split_trainable
from .._tree import all_finite
from .._types import Integer, RandomKey, Real
from ._base import AbstractLearner, Experience
from ._encoder import GaussianEncoder


class Transition(eqx.Module):
    """One step in the replay buffer."""

    observation: Float[Array, "*batch observation"]
    latent: Float[Array, "*batch latent"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    next_observation: Float[Array, "*batch observation"]


class SACState(eqx.Module):
    """The state of SAC.

    **Attributes:**

    - `encoder`: the policy.
    - `critics`, `target_critics`: two of each, with a leading axis.
    - `log_temperature`: logarithm of α.
    - `optimiser_states`: Adam's, for the encoder, the critics and the logarithm.
    - `buffer`: flashbax's replay buffer.
    - `num_seen`: steps of experience since the stage began.
    """

    encoder: GaussianEncoder
    critics: eqx.nn.MLP
    target_critics: eqx.nn.MLP
    log_temperature: Float[Array, ""]
    optimiser_states: tuple[PyTree, PyTree, PyTree]
    buffer: PyTree
    num_seen: Array


@final
class SAC(AbstractLearner[SACState]):
    """Soft actor-critic of a Gaussian encoder, with the values of the GoRL paper.

    A latent is the action of a decision process whose dynamics contain the frozen decoder. Critics are functions of the
    observation and the latent, and no gradient passes the decoder. The divergence `KL(encoder ‖ prior)` replaces the
    entropy. The prior is N(0, I), so latents stay where the decoder was fitted. With `on_actions` the prior is the
    uniform distribution, and this is plain soft actor-critic: the entropy is `size log 2` minus that divergence.

    One iteration gathers `num_envs * unroll_length * num_unrolls` steps, adds them to the replay buffer, and takes
    `updates_per_step` gradient steps for each step of the environments side by side. A new stage begins with an empty
    buffer, as a latent means something else under another decoder.

    **Arguments:**

    - `num_envs`: the number of parallel environments.
    - `unroll_length`, `num_unrolls`: their product is the number of steps of each environment in one iteration.
    - `updates_per_step`: gradient steps per step of all environments together.
    - `batch_size`: transitions in one gradient step.
    - `buffer_size`: transitions that the replay buffer holds.
    - `policy_width`, `policy_depth`, `value_width`, `value_depth`: hidden layers.
    - `keep_encoder`: keep the encoder from stage to stage: an ablation.
    - `on_actions`: latents are actions before `tanh`, which the critics see after it, and the prior is uniform.
    - `learn_temperature`: adapt the temperature, so that the divergence settles at `target_divergence`.
    - `learning_rate`: Adam's, for encoder, critics and temperature.
    - `discount`: γ.
    - `tau`: τ, the step of the target critics towards the critics.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `initial_temperature`: of the divergence, α.
    - `target_divergence`: where KL(encoder ‖ prior) is to settle, in nats per dimension. The usual target entropy of -1
        per dimension is 1.69 with `on_actions`.
    - `learning_starts`: steps of experience in a stage before the first gradient step.
    - `encoder_starts`: the same before the first gradient step of the encoder and the temperature, if that is later.
        Until then fresh critics learn the values of latents from the prior. Before they have, they only lead
        the encoder away from what the decoder does well.
    - `memory_limit`: the largest replay buffer allowed, in MiB. Every seed has a buffer of its own.

    ??? cite "Reference"

        Haarnoja et al. (2018), *Soft Actor-Critic Algorithms and Applications*, equations (5) to (7) and (18).
    """

    num_envs: int = static_field(128)
    unroll_length: int = static_field(8)
    num_unrolls: int = static_field(1)
    updates_per_step: int = static_field(20)
    batch_size: int = static_field(256)
    buffer_size: int = static_field(1_000_000)
    policy_width: int = static_field(256)
    policy_depth: int = static_field(2)
    value_width: int = static_field(256)
    value_depth: int = static_field(2)
    keep_encoder: bool = eqx.field(static=True, default=False)
    on_actions: bool = eqx.field(static=True, default=False)
    learn_temperature: bool = eqx.field(static=True, default=True)
    learning_rate: Real = float_field(3e-4, above=0)
    discount: Real = float_field(0.99, at_least=0, at_most=1)
    tau: Real = float_field(0.005, above=0, at_most=1)
    reward_scale: Real = float_field(1.0, above=0)
    initial_temperature: Real = float_field(1.0, above=0)
    target_divergence: Real = float_field(1.0, above=0)
    learning_starts: Integer = int_field(8192, at_least=0)
    encoder_starts: Integer = int_field(0, at_least=0)
    memory_limit: int = static_field(8192)

    def init(self, observation_size: int, latent_size: int, key: RandomKey) -> SACState:
        self._check_memory(observation_size, latent_size)
        encoder_key, critic_key = jax.random.split(key)
        encoder = GaussianEncoder.init(observation_size, latent_size, self.policy_width, self.policy_depth, encoder_key)

        @eqx.filter_vmap
        def critic(key: RandomKey) -> eqx.nn.MLP:
            return mlp(observation_size + latent_size, 1, self.value_width, self.value_depth, key=key)

        critics = critic(jax.random.split(critic_key))
        log_temperature = jnp.log(jnp.asarray(self.initial_temperature, jnp.float32))
        parts = (split_trainable(encoder)[0], critics, log_temperature)
        nothing = Transition(
            jnp.zeros(observation_size),
            jnp.zeros(latent_size),
            jnp.zeros(()),
            jnp.zeros((), bool),
            jnp.zeros(observation_size),
        )
        optimiser_states = tuple(self._optimiser().init(part) for part in parts)
        buffer = self._buffer().init(nothing)
        return SACState(encoder, critics, critics, log_temperature, optimiser_states, buffer, jnp.zeros((), jnp.int32))  # pyright: ignore[reportArgumentType]

    def restart(self, learner_state: SACState, observation_size: int, latent_size: int, key: RandomKey) -> SACState:
        fresh = self.init(observation_size, latent_size, key)
        if not self.keep_encoder:
            return fresh
        # A stage that diverged leaves nothing to keep.
        encoder = optax.tree.where(all_finite(learner_state.encoder), learner_state.encoder, fresh.encoder)
        return eqx.tree_at(lambda m: m.encoder, fresh, encoder)

    def encoder(self, learner_state: SACState) -> GaussianEncoder:
        return learner_state.encoder

    def evaluated_encoder(self, learner_state: SACState) -> GaussianEncoder:
        return learner_state.encoder

    def metric_names(self) -> tuple[str, ...]:
        return ("critic_loss", "policy_loss", "value", "divergence", "temperature", "latent_mean_square", "latent_std")

    def check(self) -> None:
        if self.buffer_size < self.batch_size:
            raise InputError(
                f"learner.buffer_size = {self.buffer_size} is smaller than learner.batch_size = {self.batch_size}: "
                "choose a larger buffer or a smaller batch."
            )
        steps = self.steps_per_update
        if self.buffer_size < steps:
            raise InputError(
                f"learner.buffer_size = {self.buffer_size} is smaller than the {steps} steps of an iteration "
                "(num_envs * unroll_length * num_unrolls): choose a larger buffer."
            )

    def update(
        self, learner_state: SACState, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[SACState, dict[str, Float[Array, ""]]]:
        statistics = learner_state.encoder.statistics.update(experience.observation)
        learner_state = eqx.tree_at(lambda m: m.encoder.statistics, learner_state, statistics)
        transitions = Transition(
            experience.observation,
            experience.latent,
            experience.reward,
            experience.terminated,
            experience.next_observation,
        )
        buffer = self._buffer().add(learner_state.buffer, transitions)
        num_steps = experience.reward.shape[0]
        num_seen = learner_state.num_seen + experience.reward.size
        begun = num_seen >= self.learning_starts
        encoder_begun = begun & (num_seen >= self.encoder_starts)
        # Gradient steps only read the buffer, so the scan does not carry it.
        learned = eqx.tree_at(lambda m: (m.buffer, m.num_seen), learner_state, (None, num_seen))

        def step(learner_state: SACState, key: RandomKey) -> tuple[SACState, dict[str, Array]]:
            sample_key, learn_key = jax.random.split(key)
            batch = self._buffer().sample(buffer, sample_key).experience
            after, metrics = self._gradient_step(learner_state, batch, learn_key)
            # Not a branch: under vmap over seeds both sides of one would run as well.
            after = optax.tree.where(begun, after, learner_state)
            return eqx.tree_at(
                _actor, after, optax.tree.where(encoder_begun, _actor(after), _actor(learner_state))
            ), metrics

        learned, metrics = jax.lax.scan(step, learned, jax.random.split(key, num_steps * self.updates_per_step))
        learner_state = eqx.tree_at(lambda m: m.buffer, learned, buffer, is_leaf=lambda leaf: leaf is None)
        return learner_state, {name: jnp.mean(metric) for name, metric in metrics.items()}

    def _gradient_step(
        self, learner_state: SACState, batch: Transition, key: RandomKey
    ) -> tuple[SACState, dict[str, Array]]:
        next_key, latent_key = jax.random.split(key)
        temperature = jnp.exp(learner_state.log_temperature)
        encoder_state, critic_state, temperature_state = learner_state.optimiser_states

        # The critics, towards the reward and the value of the next state.
        next_latent, next_divergence = self._draw(learner_state.encoder, batch.next_observation, next_key)
        next_value = jnp.min(
            self._values(learner_state.target_critics, learner_state.encoder, batch.next_observation, next_latent), 0
        )
        discount = self.discount * jnp.where(batch.terminated, 0.0, 1.0)
        target = self.reward_scale * batch.reward + discount * (next_value - temperature * next_divergence)

        def critic_loss(critics: eqx.nn.MLP) -> Float[Array, ""]:
            values = self._values(critics, learner_state.encoder, batch.observation, batch.latent)
            return jnp.mean(jnp.sum((values - target[None]) ** 2, axis=0))

        loss_of_critics, gradient = jax.value_and_grad(critic_loss)(learner_state.critics)
        updates, critic_state = self._optimiser().update(gradient, critic_state)
        critics = eqx.apply_updates(learner_state.critics, updates)

        # The encoder, up the critics and towards the prior.
        trainable, rest = split_trainable(learner_state.encoder)

        def policy_loss(trainable: PyTree) -> tuple[Float[Array, ""], tuple[Array, Array]]:
            encoder = eqx.combine(trainable, rest)
            latent, divergence = self._draw(encoder, batch.observation, latent_key)
            # Not jnp.min: its gradient divides by the number of entries that equal the result, which may be 0.
            value = jnp.minimum(*self._values(critics, learner_state.encoder, batch.observation, latent))
            return jnp.mean(temperature * divergence - value), (divergence, value)

        (loss_of_policy, (divergence, value)), gradient = jax.value_and_grad(policy_loss, has_aux=True)(trainable)
        updates, encoder_state = self._optimiser().update(gradient, encoder_state)
        encoder = eqx.combine(eqx.apply_updates(trainable, updates), rest)

        # The temperature rises where the divergence is above its target.
        log_temperature = learner_state.log_temperature
        if self.learn_temperature:
            excess = jnp.mean(divergence) - self.target_divergence * batch.latent.shape[-1]
            updates, temperature_state = self._optimiser().update(-temperature * excess, temperature_state)
            log_temperature = eqx.apply_updates(log_temperature, updates)

        target_critics: Any = optax.incremental_update(critics, learner_state.target_critics, self.tau)  # pyright: ignore[reportArgumentType]
        mean, std = jax.vmap(encoder.distribution)(batch.observation)
        return SACState(
            encoder,
            critics,  # pyright: ignore[reportArgumentType]
            target_critics,
            log_temperature,
            (encoder_state, critic_state, temperature_state),
            learner_state.buffer,
            learner_state.num_seen,
        ), {
            "critic_loss": loss_of_critics,
            "policy_loss": loss_of_policy,
            "value": jnp.mean(value),
            "divergence": jnp.mean(divergence),
            "temperature": temperature,
            "latent_mean_square": jnp.mean(mean**2),
            "latent_std": jnp.mean(std),
        }

    def _draw(
        self, encoder: GaussianEncoder, observation: Float[Array, "batch observation"], key: RandomKey
    ) -> tuple[Float[Array, "batch latent"], Float[Array, " batch"]]:
        """Latents, and their log-density over that of the prior: on average, the divergence from it."""
        mean, std = jax.vmap(encoder.distribution)(observation)
        latent = mean + std * jax.random.normal(key, mean.shape)
        return latent, log_over_prior(latent, mean, std, on_actions=self.on_actions)

    def _values(
        self,
        critics: eqx.nn.MLP,
        encoder: GaussianEncoder,
        observation: Float[Array, "batch observation"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, "critics batch"]:
        seen = jnp.tanh(latent) if self.on_actions else latent
        inputs = jnp.concatenate([encoder.statistics.normalise(observation), seen], axis=-1)
        return eqx.filter_vmap(lambda critic: jax.vmap(critic)(inputs)[:, 0])(critics)

    def _optimiser(self) -> optax.GradientTransformation:
        return usually_promoting(optax.adam(self.learning_rate))  # pyright: ignore[reportArgumentType]

    def _buffer(self) -> TrajectoryBuffer:
        buffer = flashbax.make_item_buffer(self.buffer_size, 1, self.batch_size, add_sequences=True, add_batches=True)
        usual = {name: usual_promotion()(getattr(buffer, name)) for name in ("add", "sample")}
        return dataclasses.replace(buffer, **usual)

    def _check_memory(self, observation_size: int, latent_size: int) -> None:
        mebibytes = self.buffer_size * (4 * (2 * observation_size + latent_size + 1) + 1) / 2**20
        if mebibytes > self.memory_limit:
            raise InputError(
                f"a replay buffer of learner.buffer_size = {self.buffer_size} takes {mebibytes:.0f} MiB, and "
                f"learner.memory_limit is {self.memory_limit}: choose a smaller buffer or a higher limit."
            )


def _actor(learner_state: SACState) -> tuple[PyTree, ...]:
    """What does not change before the encoder learns."""
    encoder_state, _, temperature_state = learner_state.optimiser_states
    return learner_state.encoder, learner_state.log_temperature, encoder_state, temperature_state
