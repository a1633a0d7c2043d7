"""Soft actor-critic in the latent space: off-policy, with a replay buffer."""

import dataclasses
import functools
from typing import Any, final

import equinox as eqx
import flashbax
import jax
import jax.numpy as jnp
import optax
from flashbax.buffers.trajectory_buffer import TrajectoryBuffer
from jaxtyping import Array, Float, PyTree

from .._backend import mean_gradient
from .._categorical import Bins, check_value_bins, sure_of_zero, value_bins
from .._errors import InputError
from .._gaussian import log_over_prior
from .._hyperparameters import float_field, int_field, static_field
from .._network import mlp
from .._promotion import usual_promotion, usually_promoting
from .._statistics import RunningStatistics
from .._trainable import split_trainable
from .._tree import all_finite
from .._types import Integer, RandomKey, Real
from ._base import (
    AbstractLearner,
    Experience,
    fresh_critic_statistics,
    moved,
    statistics_for_critic,
    with_averaged_encoder,
    with_updated_statistics,
)
from ._encoder import GaussianEncoder


class Transition(eqx.Module):
    """One step, or several, in the replay buffer.

    **Attributes:**

    - `observation`, `latent`: at the first step.
    - `reward`: the discounted sum of the steps' rewards, after scaling.
    - `discount`: of the value of `next_observation`; 0 where the episode terminated.
    - `next_observation`: after the last step, before any restart.
    - `critic_observation`, `next_critic_observation`: the same as critics see it; `None` where they see what the policy
        sees.
    """

    observation: Float[Array, "*batch observation"]
    latent: Float[Array, "*batch latent"]
    reward: Float[Array, "*batch"]
    discount: Float[Array, "*batch"]
    next_observation: Float[Array, "*batch observation"]
    critic_observation: Float[Array, "*batch critic_observation"] | None = None
    next_critic_observation: Float[Array, "*batch critic_observation"] | None = None

    def for_critic(self) -> tuple[Float[Array, "*batch seen"], Float[Array, "*batch seen"]]:
        """What critics see at the first step and after the last."""
        if self.critic_observation is None or self.next_critic_observation is None:
            return self.observation, self.next_observation
        return self.critic_observation, self.next_critic_observation


class SACState(eqx.Module):
    """The state of SAC.

    **Attributes:**

    - `encoder`: the policy.
    - `averaged_encoder`: an exponential moving average of the encoder's weights.
    - `critics`, `target_critics`: several of each, with a leading axis.
    - `log_temperature`: logarithm of α.
    - `optimiser_states`: Adam's, for the encoder, the critics and the logarithm.
    - `buffer`: flashbax's replay buffer.
    - `num_seen`: steps of experience since the stage began.
    - `critic_statistics`: running statistics of what critics see; `None` where they see what the policy sees.
    """

    encoder: GaussianEncoder
    averaged_encoder: GaussianEncoder
    critics: eqx.nn.MLP
    target_critics: eqx.nn.MLP
    log_temperature: Float[Array, ""]
    optimiser_states: tuple[PyTree, PyTree, PyTree]
    buffer: PyTree
    num_seen: Array
    critic_statistics: RunningStatistics | None = None


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
    - `policy_norm`, `value_norm`: whether a layer norm follows each hidden layer.
    - `num_critics`: the number of critics.
    - `pessimistic`: the value is the smallest of the critics'; otherwise it is their mean.
    - `num_bins`: critics are categorical distributions over this many bins, and learn by cross-entropy; `None` for
        critics that output a value and learn by squared error.
    - `bootstrap_steps`: rewards that a target sums up before the value of the critics follows; fewer where the episode
        or the unroll ends. The divergences of the steps in between are left out.
    - `keep_encoder`: keep the encoder from stage to stage: an ablation.
    - `on_actions`: latents are actions before `tanh`, which the critics see after it, and the prior is uniform.
    - `learn_temperature`: adapt the temperature, so that the divergence settles at `target_divergence`.
    - `learning_rate`: Adam's, for encoder, critics and temperature.
    - `learning_rate_decay`: the share of the learning rate that a linear decay takes away by the end of a run.
    - `discount`: γ.
    - `tau`: τ, the step of the target critics towards the critics.
    - `average_decay`: decay per iteration of the averaged encoder, which is the one that is evaluated; 0 for the
        newest.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `lowest_value`, `highest_value`: the range of the bins; `None` for the discounted sums of rewards from -0.1 to
        1.2, after scaling. The metric `out_of_range` is the share of targets outside.
    - `initial_temperature`: of the divergence, α.
    - `target_divergence`: where KL(encoder ‖ prior) is to settle, in nats per dimension. The usual target entropy of -1
        per dimension is 1.69 with `on_actions`.
    - `learning_starts`: steps of experience in a stage before the first gradient step.
    - `encoder_starts`: the same before the first gradient step of the encoder and the temperature, if that is later.
        Until then fresh critics learn the values of latents from the prior. Before they have, they only lead
        the encoder away from what the decoder does well.
    - `memory_limit`: the largest replay buffer allowed, in MiB. Every seed has a buffer of its own, and a step holds it
        twice: `gorl.iterate` and the command line compare this with the memory for all seeds together. `gorl.train`
        does not, since it sees one seed under `jax.vmap`.

    ??? cite "Reference"

        Haarnoja et al. (2018), *Soft Actor-Critic Algorithms and Applications*, equations (5) to (7) and (18).
        Categorical critics as in Farebrother et al. (2024), *Stop Regressing*, layer norms and the mean of critics as
        in Nauman et al. (2024), *Bigger, Regularized, Optimistic*.
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
    policy_norm: bool = eqx.field(static=True, default=False)
    value_norm: bool = eqx.field(static=True, default=False)
    num_critics: int = static_field(2)
    pessimistic: bool = eqx.field(static=True, default=True)
    num_bins: int | None = static_field(None, at_least=2)
    bootstrap_steps: int = static_field(1)
    keep_encoder: bool = eqx.field(static=True, default=False)
    on_actions: bool = eqx.field(static=True, default=False)
    learn_temperature: bool = eqx.field(static=True, default=True)
    learning_rate: Real = float_field(3e-4, above=0)
    learning_rate_decay: Real = float_field(0.0, at_least=0, at_most=1)
    discount: Real = float_field(0.99, at_least=0, at_most=1)
    tau: Real = float_field(0.005, above=0, at_most=1)
    average_decay: Real = float_field(0.0, at_least=0, at_most=1)
    reward_scale: Real = float_field(1.0, above=0)
    lowest_value: Real | None = float_field(None)
    highest_value: Real | None = float_field(None)
    initial_temperature: Real = float_field(1.0, above=0)
    target_divergence: Real = float_field(1.0, above=0)
    learning_starts: Integer = int_field(8192, at_least=0)
    encoder_starts: Integer = int_field(0, at_least=0)
    memory_limit: int = static_field(8192)

    def init(
        self, observation_size: int, latent_size: int, key: RandomKey, critic_observation_size: int | None = None
    ) -> SACState:
        nothing = self._nothing(observation_size, latent_size, critic_observation_size)
        self._check_memory(nothing)
        encoder_key, critic_key = jax.random.split(key)
        encoder = GaussianEncoder.init(
            observation_size,
            latent_size,
            self.policy_width,
            self.policy_depth,
            encoder_key,
            normalised=self.policy_norm,
        )

        @eqx.filter_vmap
        def critic(key: RandomKey) -> eqx.nn.MLP:
            num_inputs = (critic_observation_size or observation_size) + latent_size
            sizes = (num_inputs, self.num_bins or 1, self.value_width, self.value_depth)
            network = mlp(*sizes, key=key, normalised=self.value_norm)
            return network if self.num_bins is None else sure_of_zero(network, self._bins)

        critics = critic(jax.random.split(critic_key, self.num_critics))
        log_temperature = jnp.log(jnp.asarray(self.initial_temperature, jnp.float32))
        parts = (split_trainable(encoder)[0], critics, log_temperature)
        optimiser_states = tuple(self._optimiser().init(part) for part in parts)
        buffer = self._buffer().init(nothing)
        return SACState(
            encoder,
            encoder,
            critics,
            critics,
            log_temperature,
            optimiser_states,  # pyright: ignore[reportArgumentType]
            buffer,
            jnp.zeros((), jnp.int32),
            fresh_critic_statistics(critic_observation_size),
        )

    def restart(
        self,
        learner_state: SACState,
        observation_size: int,
        latent_size: int,
        key: RandomKey,
        critic_observation_size: int | None = None,
    ) -> SACState:
        fresh = self.init(observation_size, latent_size, key, critic_observation_size)
        if not self.keep_encoder:
            return fresh
        # A stage that diverged leaves nothing to keep.
        encoder = optax.tree.where(all_finite(learner_state.encoder), learner_state.encoder, fresh.encoder)
        return eqx.tree_at(lambda m: (m.encoder, m.averaged_encoder), fresh, (encoder, encoder))

    def encoder(self, learner_state: SACState) -> GaussianEncoder:
        return learner_state.encoder

    def evaluated_encoder(self, learner_state: SACState) -> GaussianEncoder:
        return learner_state.averaged_encoder

    def metric_names(self) -> tuple[str, ...]:
        names = ("critic_loss", "policy_loss", "value", "divergence", "temperature", "latent_mean_square", "latent_std")
        return names if self.num_bins is None else (*names, "out_of_range")

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
        if self.num_bins is not None:
            check_value_bins(self.lowest_value, self.highest_value, self.discount, self.reward_scale)

    def update(
        self, learner_state: SACState, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[SACState, dict[str, Float[Array, ""]]]:
        learner_state = with_updated_statistics(learner_state, experience)
        buffer = self._buffer().add(learner_state.buffer, self._transitions(experience))
        num_steps = experience.reward.shape[0]
        num_seen = learner_state.num_seen + experience.reward.size
        begun = num_seen >= self.learning_starts
        encoder_begun = begun & (num_seen >= self.encoder_starts)
        scale = 1 - self.learning_rate_decay * progress
        # Gradient steps only read the buffer, so the scan does not carry it.
        learned = eqx.tree_at(lambda m: (m.buffer, m.num_seen), learner_state, (None, num_seen))

        def step(learner_state: SACState, key: RandomKey) -> tuple[SACState, dict[str, Array]]:
            sample_key, learn_key = jax.random.split(key)
            batch = self._buffer().sample(buffer, sample_key).experience
            after, metrics = self._gradient_step(learner_state, batch, learn_key, scale)
            # Not a branch: under vmap over seeds both sides of one would run as well.
            after = optax.tree.where(begun, after, learner_state)
            return eqx.tree_at(
                _actor, after, optax.tree.where(encoder_begun, _actor(after), _actor(learner_state))
            ), metrics

        learned, metrics = jax.lax.scan(step, learned, jax.random.split(key, num_steps * self.updates_per_step))
        learner_state = eqx.tree_at(lambda m: m.buffer, learned, buffer, is_leaf=lambda leaf: leaf is None)
        learner_state = with_averaged_encoder(learner_state, self.average_decay)
        return learner_state, {name: jnp.mean(metric) for name, metric in metrics.items()}

    def _gradient_step(
        self, learner_state: SACState, batch: Transition, key: RandomKey, scale: Real = 1.0
    ) -> tuple[SACState, dict[str, Array]]:
        """Learns from one batch, with `scale` times the learning rate."""
        next_noise, noise = (jax.random.normal(part, batch.latent.shape) for part in jax.random.split(key))
        temperature = jnp.exp(learner_state.log_temperature)
        encoder_state, critic_state, temperature_state = learner_state.optimiser_states
        statistics = statistics_for_critic(learner_state)
        width = max(self.policy_width, self.value_width)

        # The critics, towards the reward and the value of the next state.
        def critic_loss(critics: eqx.nn.MLP, rows: tuple[Transition, Array]) -> tuple[Float[Array, ""], dict]:
            steps, next_noise = rows
            seen, next_seen = steps.for_critic()
            next_latent, next_divergence = self._draw(learner_state.encoder, steps.next_observation, next_noise)
            next_value = self._value(learner_state.target_critics, statistics, next_seen, next_latent)
            target = steps.reward + steps.discount * (next_value - temperature * next_divergence)
            outputs = self._outputs(critics, statistics, seen, steps.latent)
            metrics = {}
            if self.num_bins is None:
                losses = (outputs[..., 0] - target[None]) ** 2
            else:
                losses = optax.softmax_cross_entropy(outputs, self._bins.project(target)[None])
                metrics["out_of_range"] = jnp.mean(self._bins.clip(target) != target)
            loss = jnp.mean(jnp.sum(losses, axis=0))
            return loss, {"critic_loss": loss, **metrics}

        gradient, critic_metrics = mean_gradient(critic_loss, learner_state.critics, (batch, next_noise), width)
        critics, critic_state = moved(self._optimiser(), learner_state.critics, gradient, critic_state, scale)

        # The encoder, up the critics and towards the prior.
        trainable, rest = split_trainable(learner_state.encoder)

        def policy_loss(trainable: PyTree, rows: tuple[Transition, Array]) -> tuple[Float[Array, ""], dict]:
            encoder, (steps, noise) = eqx.combine(trainable, rest), rows
            latent, divergence = self._draw(encoder, steps.observation, noise)
            value = self._value(critics, statistics, steps.for_critic()[0], latent)
            loss = jnp.mean(temperature * divergence - value)
            return loss, {"policy_loss": loss, "value": jnp.mean(value), "divergence": jnp.mean(divergence)}

        gradient, metrics = mean_gradient(policy_loss, trainable, (batch, noise), width)
        encoder, encoder_state = moved(self._optimiser(), learner_state.encoder, gradient, encoder_state, scale)

        # The temperature rises where the divergence is above its target.
        log_temperature = learner_state.log_temperature
        if self.learn_temperature:
            excess = metrics["divergence"] - self.target_divergence * batch.latent.shape[-1]
            log_temperature, temperature_state = moved(
                self._optimiser(), log_temperature, -temperature * excess, temperature_state, scale
            )

        target_critics: Any = optax.incremental_update(critics, learner_state.target_critics, self.tau)  # pyright: ignore[reportArgumentType]
        mean, std = jax.vmap(encoder.distribution)(batch.observation)
        return SACState(
            encoder,
            learner_state.averaged_encoder,
            critics,  # pyright: ignore[reportArgumentType]
            target_critics,
            log_temperature,
            (encoder_state, critic_state, temperature_state),
            learner_state.buffer,
            learner_state.num_seen,
            learner_state.critic_statistics,
        ), {
            **critic_metrics,
            **metrics,
            "temperature": temperature,
            "latent_mean_square": jnp.mean(mean**2),
            "latent_std": jnp.mean(std),
        }

    def _transitions(self, experience: Experience) -> Transition:
        """The steps with their targets' rewards, each summed over `bootstrap_steps`."""
        last = Transition(
            experience.observation,
            experience.latent,
            self.reward_scale * experience.reward,
            self.discount * jnp.where(experience.terminated, 0.0, 1.0),
            experience.next_observation,
            experience.critic_observation,
            experience.next_critic_observation,
        )
        is_last = experience.terminated | experience.truncated
        is_last = is_last.at[-1].set(True)
        summed = last
        for _ in range(self.bootstrap_steps - 1):
            following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), summed)
            longer = Transition(
                last.observation,
                last.latent,
                last.reward + self.discount * following.reward,
                self.discount * following.discount,
                following.next_observation,
                last.critic_observation,
                following.next_critic_observation,
            )
            summed = jax.tree.map(
                lambda one, more: jnp.where(is_last.reshape(is_last.shape + (1,) * (one.ndim - 2)), one, more),
                last,
                longer,
            )
        return summed

    def _draw(
        self,
        encoder: GaussianEncoder,
        observation: Float[Array, "batch observation"],
        noise: Float[Array, "batch latent"],
    ) -> tuple[Float[Array, "batch latent"], Float[Array, " batch"]]:
        """Latents, and their log-density over that of the prior: on average, the divergence from it."""
        mean, std = jax.vmap(encoder.distribution)(observation)
        latent = mean + std * noise
        return latent, log_over_prior(latent, mean, std, on_actions=self.on_actions)

    def _outputs(
        self,
        critics: eqx.nn.MLP,
        statistics: RunningStatistics,
        observation: Float[Array, "batch seen"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, "critics batch outputs"]:
        seen = jnp.tanh(latent) if self.on_actions else latent
        inputs = jnp.concatenate([statistics.normalise(observation), seen], axis=-1)
        return eqx.filter_vmap(lambda critic: jax.vmap(critic)(inputs))(critics)

    def _value(
        self,
        critics: eqx.nn.MLP,
        statistics: RunningStatistics,
        observation: Float[Array, "batch seen"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, " batch"]:
        """The value that all critics give together."""
        outputs = self._outputs(critics, statistics, observation, latent)
        values = outputs[..., 0] if self.num_bins is None else self._bins.mean(outputs)
        # Not jnp.min: its gradient divides by the number of entries that equal the result, which may be 0.
        return functools.reduce(jnp.minimum, list(values)) if self.pessimistic else jnp.mean(values, axis=0)

    @property
    def _bins(self) -> Bins:
        assert self.num_bins is not None
        return value_bins(self.num_bins, self.lowest_value, self.highest_value, self.discount, self.reward_scale)

    def _optimiser(self) -> optax.GradientTransformation:
        return usually_promoting(optax.adam(self.learning_rate))  # pyright: ignore[reportArgumentType]

    def _buffer(self) -> TrajectoryBuffer:
        buffer = flashbax.make_item_buffer(self.buffer_size, 1, self.batch_size, add_sequences=True, add_batches=True)
        usual = {name: usual_promotion()(getattr(buffer, name)) for name in ("add", "sample")}
        return dataclasses.replace(buffer, **usual)

    def _nothing(self, observation_size: int, latent_size: int, critic_observation_size: int | None) -> Transition:
        """A transition of zeros."""
        seen = jnp.zeros(observation_size)
        seen_by_critic = None if critic_observation_size is None else jnp.zeros(critic_observation_size)
        number = jnp.zeros(())
        return Transition(seen, jnp.zeros(latent_size), number, number, seen, seen_by_critic, seen_by_critic)

    def _check_memory(self, transition: Transition) -> None:
        mebibytes = self.buffer_size * sum(leaf.nbytes for leaf in jax.tree.leaves(transition)) / 2**20
        if mebibytes > self.memory_limit:
            raise InputError(
                f"a replay buffer of learner.buffer_size = {self.buffer_size} takes {mebibytes:.0f} MiB, and "
                f"learner.memory_limit is {self.memory_limit}: choose a smaller buffer or a higher limit."
            )


def _actor(learner_state: SACState) -> tuple[PyTree, ...]:
    """What does not change before the encoder learns."""
    encoder_state, _, temperature_state = learner_state.optimiser_states
    return learner_state.encoder, learner_state.log_temperature, encoder_state, temperature_state
