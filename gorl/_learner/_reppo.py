"""Relative entropy pathwise policy optimisation: on-policy, with gradients through a categorical critic."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._advantage import lambda_returns
from .._blocks import map_rows, mean_gradient
from .._categorical import Bins
from .._errors import InputError, unknown_name
from .._gaussian import divergence as kl_divergence, log_over_prior
from .._hyperparameters import real, size
from .._network import perceptron
from .._promotion import usually_promoting
from .._shuffle import shuffle
from .._statistics import RunningStatistics
from .._trainable import split_trainable
from .._tree import is_finite, where
from .._types import RandomKey, Real
from ._base import AbstractLearner, Experience, check_minibatches
from ._encoder import GaussianEncoder

_KL_MODES = ("clipped", "full", "none")
_CONFIDENCE = 40.0  # of a fresh critic, in nats, that every value is 0


class Critic(eqx.Module):
    """A distribution over the value of an observation and a latent.

    **Attributes:**

    - `trunk`: makes features of both.
    - `head`: makes logits of bins of the features.
    - `outlook`: makes of the features those of the next step, and the reward; `None` where that is not learned.
    """

    trunk: eqx.nn.MLP
    head: eqx.nn.MLP
    outlook: eqx.nn.MLP | None


class REPPOMemory(eqx.Module):
    """What REPPO carries from update to update."""

    encoder: GaussianEncoder
    averaged_encoder: GaussianEncoder  # its weights are a running average of the encoder's
    critic: Critic
    log_temperature: Float[Array, ""]
    log_multiplier: Float[Array, ""]
    optimiser_states: tuple[PyTree, PyTree, PyTree]  # of encoder, critic, and both logarithms


class Batch(eqx.Module):
    """Steps to learn from, in any order."""

    observation: Float[Array, "batch observation"]
    latent: Float[Array, "batch latent"]
    reward: Float[Array, " batch"]
    next_observation: Float[Array, "batch observation"]
    next_latent: Float[Array, "batch latent"]
    target: Float[Array, " batch"]


class REPPO(AbstractLearner[REPPOMemory]):
    """Relative entropy pathwise policy optimisation of a Gaussian encoder, with the values of its paper.

    It has neither a replay buffer nor target networks. One iteration gathers
    `num_envs * unroll_length * num_unrolls` steps, computes the values to learn once, and takes
    `num_epochs * num_minibatches` pairs of gradient steps: the critic towards the values, then the encoder up the
    critic. The encoder is held near the one that gathered the steps by a bound on their divergence, and near the prior
    by a second one: N(0, I) on latents, the uniform distribution on actions, which bounds the entropy from below.

    **Arguments:**

    - `num_envs`: environments side by side.
    - `unroll_length`, `num_unrolls`: steps in a row of each environment, and how many times as many in one iteration.
    - `num_minibatches`, `num_epochs`: how the steps of one iteration are learned from.
    - `policy_width`, `policy_depth`, `value_width`, `value_depth`: hidden layers.
    - `policy_norm`, `value_norm`: whether a layer norm follows each of them.
    - `num_bins`: of the critic.
    - `predicts_outlook`: the critic also learns to predict the reward and its own features of the next step.
    - `kl_mode`: `"clipped"` follows the critic only where the divergence from the old encoder is below its bound;
        `"full"` follows it everywhere, less the weighted divergence; `"none"` lets the encoder go where it likes.
    - `on_actions`: latents are actions before `tanh`, which the critic sees after it, and the prior is uniform.
    - `keep_critic`: keep the critic and the statistics of observations from stage to stage.
    - `keep_encoder`: keep the encoder from stage to stage: an ablation.
    - `keep_features`: begin a stage with the encoder's hidden layers under a fresh last layer.
    - `learn_temperature`: move the temperature such that the divergence from the prior settles at its target.
    - `learning_rate`: Adam's, for encoder and critic.
    - `dual_learning_rate`: Adam's, for the logarithms of temperature and multiplier.
    - `annealing`: how much of the learning rates is taken away, little by little, in the course of a run.
    - `max_gradient_norm`: gradients of a greater global norm are scaled down to it.
    - `discount`, `trace_decay`: γ and λ.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `lowest_value`, `highest_value`: the range of the critic's bins; `None` for what rewards between -0.1 and 1.2 add
        up to, after scaling. The metric `out_of_range` says how many values lie outside.
    - `outlook_cost`: weight of the error of the outlook.
    - `target_divergence`: where KL(encoder ‖ prior) is to settle, in nats per dimension. An entropy of -0.5 per
        dimension is 1.19 with `on_actions`.
    - `initial_temperature`: weight α of the divergence from the prior.
    - `kl_bound`: on KL(old encoder ‖ encoder), in nats.
    - `initial_multiplier`: weight β of that divergence.
    - `averaging`: share of the old weights that an iteration leaves in the averaged encoder, which is evaluated and
        kept; 0 for the newest encoder itself.

    ??? cite "Reference"

        Voelcker et al. (2025), *Relative Entropy Pathwise Policy Optimization*, arXiv 2507.11019.
    """

    num_envs: int = size(1024)
    unroll_length: int = size(128)
    num_unrolls: int = size(1)
    num_minibatches: int = size(64)
    num_epochs: int = size(8)
    policy_width: int = size(512)
    policy_depth: int = size(3)
    value_width: int = size(512)
    value_depth: int = size(3)
    policy_norm: bool = eqx.field(static=True, default=True)
    value_norm: bool = eqx.field(static=True, default=True)
    num_bins: int = size(151, at_least=2)
    predicts_outlook: bool = eqx.field(static=True, default=False)
    kl_mode: str = eqx.field(static=True, default="clipped")
    on_actions: bool = eqx.field(static=True, default=False)
    keep_critic: bool = eqx.field(static=True, default=False)
    keep_encoder: bool = eqx.field(static=True, default=False)
    keep_features: bool = eqx.field(static=True, default=False)
    learn_temperature: bool = eqx.field(static=True, default=True)
    learning_rate: Real = real(3e-4, above=0)
    dual_learning_rate: Real = real(3e-4, above=0)
    annealing: Real = real(0.0, at_least=0, at_most=1)
    max_gradient_norm: Real = real(0.5, above=0)
    discount: Real = real(0.99, at_least=0, at_most=1)
    trace_decay: Real = real(0.95, at_least=0, at_most=1)
    reward_scale: Real = real(1.0, above=0)
    lowest_value: Real | None = real(None)
    highest_value: Real | None = real(None)
    outlook_cost: Real = real(0.0, at_least=0)
    target_divergence: Real = real(1.0, above=0)
    initial_temperature: Real = real(0.01, above=0)
    kl_bound: Real = real(0.1, above=0)
    initial_multiplier: Real = real(0.01, above=0)
    averaging: Real = real(0.95, at_least=0, at_most=1)

    def init(self, observation_size: int, latent_size: int, key: RandomKey) -> REPPOMemory:
        encoder_key, trunk_key, head_key, outlook_key = jax.random.split(key, 4)
        encoder = GaussianEncoder.init(
            observation_size,
            latent_size,
            self.policy_width,
            self.policy_depth,
            encoder_key,
            normalised=self.policy_norm,
        )
        width, depth = self.value_width, self.value_depth
        # The features are the output of the last hidden layer, so that the head is a single layer.
        trunk = perceptron(
            observation_size + latent_size,
            width,
            width,
            depth - 1,
            key=trunk_key,
            normalised=self.value_norm,
            is_hidden=True,
        )
        head = perceptron(width, self.num_bins, width, 0, key=head_key)
        sure_of_zero = _CONFIDENCE * self._bins.project(jnp.zeros(()))
        head = eqx.tree_at(lambda h: h.layers[-1].bias, head, sure_of_zero)
        outlook = perceptron(width, width + 1, width, 1, key=outlook_key) if self.predicts_outlook else None
        return self._begin(encoder, Critic(trunk, head, outlook))

    def restart(self, memory: REPPOMemory, observation_size: int, latent_size: int, key: RandomKey) -> REPPOMemory:
        fresh = self.init(observation_size, latent_size, key)
        memory = where(is_finite(memory), memory, fresh)  # a stage that diverged leaves nothing to keep
        encoder = fresh.encoder
        if self.keep_encoder:
            encoder = memory.encoder
        elif self.keep_features:
            encoder = memory.encoder.at_prior()
        if not self.keep_critic:
            return self._begin(encoder, fresh.critic)
        encoder = eqx.tree_at(lambda e: e.statistics, encoder, memory.encoder.statistics)
        return self._begin(encoder, memory.critic)

    def encoder(self, memory: REPPOMemory) -> GaussianEncoder:
        return memory.encoder

    def evaluated_encoder(self, memory: REPPOMemory) -> GaussianEncoder:
        return memory.averaged_encoder

    def metric_names(self) -> tuple[str, ...]:
        return (
            "critic_loss",
            "policy_loss",
            "value",
            "out_of_range",
            "divergence",
            "temperature",
            "kl",
            "multiplier",
            "latent_mean_square",
            "latent_std",
        )

    def check(self) -> None:
        check_minibatches(self.num_minibatches, self.steps_per_update)
        if self.kl_mode not in _KL_MODES:
            raise unknown_name("learner.kl_mode", self.kl_mode, _KL_MODES)
        numbers = (self.lowest_value, self.highest_value, self.discount, self.reward_scale)
        if any(isinstance(number, jax.core.Tracer) for number in numbers):  # pyright: ignore[reportAttributeAccessIssue]
            return
        if (self.lowest_value is None or self.highest_value is None) and not _differs_from_one(self.discount):
            raise InputError(
                "with learner.discount = 1 values have no bound that follows from it: give learner.lowest_value and "
                "learner.highest_value."
            )
        bins = self._bins
        if not np.all(np.asarray(bins.lowest) < np.asarray(bins.highest)):
            raise InputError(
                f"learner.lowest_value = {bins.lowest} is not below learner.highest_value = {bins.highest}: no value "
                "lies between them."
            )
        if not self.predicts_outlook and np.any(np.asarray(self.outlook_cost) > 0):
            raise InputError(
                "learner.outlook_cost is above 0, and the critic has no outlook to learn: set "
                "learner.predicts_outlook to true."
            )

    def update(
        self, memory: REPPOMemory, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[REPPOMemory, dict[str, Float[Array, ""]]]:
        target_key, key = jax.random.split(key)
        batch = self._batch(memory, experience, target_key)
        old, scale = memory.encoder, 1 - self.annealing * progress

        def epoch(memory: REPPOMemory, key: RandomKey) -> tuple[REPPOMemory, dict[str, Array]]:
            order_key, step_key = jax.random.split(key)
            minibatches = shuffle(order_key, batch.target.shape[0]).reshape(self.num_minibatches, -1)

            def step(
                memory: REPPOMemory, inputs: tuple[Int[Array, " minibatch"], RandomKey]
            ) -> tuple[REPPOMemory, dict[str, Array]]:
                chosen, key = inputs
                return self._gradient_steps(memory, old, jax.tree.map(lambda leaf: leaf[chosen], batch), key, scale)

            return jax.lax.scan(step, memory, (minibatches, jax.random.split(step_key, self.num_minibatches)))

        memory, metrics = jax.lax.scan(epoch, memory, jax.random.split(key, self.num_epochs))
        # Only now: with other statistics the encoder would be another one than that which gathered the steps.
        statistics = memory.encoder.statistics.update(experience.observation)
        encoder = eqx.tree_at(lambda e: e.statistics, memory.encoder, statistics)
        memory = eqx.tree_at(
            lambda m: (m.encoder, m.averaged_encoder), memory, (encoder, self._averaged(memory, encoder))
        )
        return memory, {name: jnp.mean(figures) for name, figures in metrics.items()}

    def _begin(self, encoder: GaussianEncoder, critic: Critic) -> REPPOMemory:
        log_temperature, log_multiplier = (
            jnp.log(jnp.asarray(number, jnp.float32)) for number in (self.initial_temperature, self.initial_multiplier)
        )
        duals = (log_temperature, log_multiplier)
        states = tuple(self._optimiser().init(split_trainable(part)[0]) for part in (encoder, critic, duals))
        return REPPOMemory(encoder, encoder, critic, *duals, states)  # pyright: ignore[reportArgumentType]

    def _optimiser(self) -> optax.GradientTransformation:
        """Steps of size 1, to be scaled by a learning rate that may change in the course of a run."""
        return usually_promoting(
            optax.chain(
                optax.clip_by_global_norm(self.max_gradient_norm),  # pyright: ignore[reportArgumentType]
                optax.scale_by_adam(),
            )
        )

    @property
    def _bins(self) -> Bins:
        horizon = self.reward_scale / (1 - self.discount) if _differs_from_one(self.discount) else math.inf
        lowest = -0.1 * horizon if self.lowest_value is None else self.lowest_value
        highest = 1.2 * horizon if self.highest_value is None else self.highest_value
        return Bins(lowest, highest, self.num_bins)

    def _averaged(self, memory: REPPOMemory, encoder: GaussianEncoder) -> GaussianEncoder:
        newest, rest = split_trainable(encoder)
        before, _ = split_trainable(memory.averaged_encoder)
        mixed: Any = optax.incremental_update(newest, before, 1 - self.averaging)  # pyright: ignore[reportArgumentType]
        return eqx.combine(mixed, rest)

    def _batch(self, memory: REPPOMemory, experience: Experience, key: RandomKey) -> Batch:
        """Everything that the gradient steps of one iteration need, computed once, in one flat list of steps."""
        shape = experience.reward.shape
        steps = (experience.observation, experience.latent, experience.next_observation)
        observation, latent, next_observation = (leaf.reshape(-1, leaf.shape[-1]) for leaf in steps)
        next_latent, next_divergence = self._draw(memory.encoder, next_observation, key)
        next_value = self._values(memory.critic, memory.encoder.statistics, next_observation, next_latent)
        # A next step also pays for how far its latent strays from the prior.
        next_value = next_value - jnp.exp(memory.log_temperature) * next_divergence
        reward = self.reward_scale * experience.reward
        target = lambda_returns(
            reward,
            next_value.reshape(shape),
            experience.terminated,
            experience.truncated,
            self.discount,
            self.trace_decay,
        )
        return Batch(observation, latent, reward.reshape(-1), next_observation, next_latent, target.reshape(-1))

    def _gradient_steps(
        self, memory: REPPOMemory, old: GaussianEncoder, batch: Batch, key: RandomKey, scale: Real
    ) -> tuple[REPPOMemory, dict[str, Array]]:
        encoder_state, critic_state, duals_state = memory.optimiser_states
        temperature, multiplier = jnp.exp(memory.log_temperature), jnp.exp(memory.log_multiplier)
        statistics, bins = memory.encoder.statistics, self._bins
        width = max(self.policy_width, self.value_width)

        # The critic, towards the values.
        trainable, rest = split_trainable(memory.critic)

        def critic_loss(trainable: PyTree, steps: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
            critic = eqx.combine(trainable, rest)
            features = self._features(critic, statistics, steps.observation, steps.latent)
            logits = jax.vmap(critic.head)(features)
            loss = jnp.mean(optax.softmax_cross_entropy(logits, bins.project(steps.target)))
            out_of_range = jnp.mean(bins.clip(steps.target) != steps.target)
            metrics = {"critic_loss": loss, "out_of_range": out_of_range}
            return loss + self.outlook_cost * self._outlook_error(critic, statistics, features, steps), metrics

        gradient, critic_metrics = mean_gradient(critic_loss, trainable, batch, width)
        critic, critic_state = self._moved(memory.critic, gradient, critic_state, scale * self.learning_rate)

        # The encoder, up the critic, near the old one and near the prior.
        trainable, rest = split_trainable(memory.encoder)
        noise = jax.random.normal(key, batch.latent.shape)

        def policy_loss(trainable: PyTree, rows: tuple[Batch, Array]) -> tuple[Float[Array, ""], dict[str, Array]]:
            encoder, (steps, noise) = eqx.combine(trainable, rest), rows
            mean, std = jax.vmap(encoder.distribution)(steps.observation)
            latent = mean + std * noise
            divergence = log_over_prior(latent, mean, std, on_actions=self.on_actions)
            value = self._values(critic, statistics, steps.observation, latent)
            kl = kl_divergence(*jax.vmap(old.distribution)(steps.observation), mean, std)
            upwards = temperature * divergence - value
            if self.kl_mode == "clipped":
                loss = jnp.where(kl < self.kl_bound, upwards, multiplier * kl)
            else:
                loss = upwards + (multiplier * kl if self.kl_mode == "full" else 0.0)
            return jnp.mean(loss), {
                "policy_loss": jnp.mean(loss),
                "value": jnp.mean(value),
                "divergence": jnp.mean(divergence),
                "kl": jnp.mean(kl),
                "latent_mean_square": jnp.mean(mean**2),
                "latent_std": jnp.mean(std),
            }

        gradient, metrics = mean_gradient(policy_loss, trainable, (batch, noise), width)
        encoder, encoder_state = self._moved(memory.encoder, gradient, encoder_state, scale * self.learning_rate)

        # Temperature and multiplier, up where what they weigh is above its target.
        excess = metrics["divergence"] - self.target_divergence * batch.latent.shape[-1]
        duals = (memory.log_temperature, memory.log_multiplier)
        gradient = (
            -temperature * excess if self.learn_temperature else jnp.zeros(()),
            -multiplier * (metrics["kl"] - self.kl_bound),
        )
        (log_temperature, log_multiplier), duals_state = self._moved(
            duals, gradient, duals_state, scale * self.dual_learning_rate
        )
        states = (encoder_state, critic_state, duals_state)
        memory = REPPOMemory(encoder, memory.averaged_encoder, critic, log_temperature, log_multiplier, states)
        return memory, {**critic_metrics, **metrics, "temperature": temperature, "multiplier": multiplier}

    def _moved(self, part: PyTree, gradient: PyTree, state: PyTree, rate: Real) -> tuple[Any, PyTree]:
        """A part after a gradient step, and the state of its optimiser."""
        updates, state = self._optimiser().update(gradient, state)
        return eqx.apply_updates(part, jax.tree.map(lambda update: -rate * update, updates)), state

    def _draw(
        self, encoder: GaussianEncoder, observation: Float[Array, "batch observation"], key: RandomKey
    ) -> tuple[Float[Array, "batch latent"], Float[Array, " batch"]]:
        """Latents, and their log-density over that of the prior: on average, the divergence from it."""
        mean, std = map_rows(encoder.distribution, observation, self.policy_width)
        latent = mean + std * jax.random.normal(key, mean.shape)
        return latent, log_over_prior(latent, mean, std, on_actions=self.on_actions)

    def _features(
        self,
        critic: Critic,
        statistics: RunningStatistics,
        observation: Float[Array, "batch observation"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, "batch features"]:
        seen = jnp.tanh(latent) if self.on_actions else latent
        inputs = jnp.concatenate([statistics.normalise(observation), seen], axis=-1)
        return map_rows(critic.trunk, inputs, self.value_width)

    def _values(
        self,
        critic: Critic,
        statistics: RunningStatistics,
        observation: Float[Array, "batch observation"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, " batch"]:
        features = self._features(critic, statistics, observation, latent)
        return self._bins.mean(jax.vmap(critic.head)(features))

    def _outlook_error(
        self, critic: Critic, statistics: RunningStatistics, features: Float[Array, "batch features"], steps: Batch
    ) -> Float[Array, ""] | float:
        """How far the features of the next step, and the reward, are from what the features of this one foretell."""
        if critic.outlook is None:
            return 0.0
        following = self._features(critic, statistics, steps.next_observation, steps.next_latent)
        true = jax.lax.stop_gradient(jnp.concatenate([following, steps.reward[:, None]], axis=-1))
        return jnp.mean((jax.vmap(critic.outlook)(features) - true) ** 2)


def _differs_from_one(discount: Real) -> bool:
    """Whether a discount is below 1; of one that is being traced it was checked before."""
    is_traced = isinstance(discount, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
    return is_traced or not np.any(np.asarray(discount) == 1)
