"""Relative entropy pathwise policy optimisation: on-policy, with gradients through a categorical critic."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._advantage import lambda_returns
from .._backend import map_rows, mean_gradient, shuffle
from .._categorical import Bins, check_value_bins, sure_of_zero, value_bins
from .._errors import InputError, unknown_name
from .._gaussian import divergence as kl_divergence, log_over_prior
from .._hyperparameters import float_field, int_field, static_field
from .._network import mlp
from .._promotion import usually_promoting
from .._statistics import RunningStatistics
from .._trainable import split_trainable
from .._tree import all_finite
from .._types import Integer, RandomKey, Real
from ._base import (
    AbstractLearner,
    Experience,
    check_minibatches,
    fresh_critic_statistics,
    moved,
    statistics_for_critic,
    with_averaged_encoder,
    with_updated_statistics,
)
from ._encoder import GaussianEncoder

_KL_MODES = ("clipped", "full", "none")


class Critic(eqx.Module):
    """A categorical distribution over the value of an observation and a latent.

    **Attributes:**

    - `trunk`: maps both to features.
    - `head`: maps features to logits of the bins.
    - `auxiliary_head`: predicts the features of the next step and the reward; `None` without the auxiliary loss.
    """

    trunk: eqx.nn.MLP
    head: eqx.nn.MLP
    auxiliary_head: eqx.nn.MLP | None


class REPPOState(eqx.Module):
    """The state of REPPO.

    **Attributes:**

    - `encoder`: the policy.
    - `averaged_encoder`: an exponential moving average of the encoder's weights.
    - `critic`: the critic.
    - `log_temperature`, `log_multiplier`: logarithms of α and β.
    - `optimiser_states`: Adam's, for the encoder, the critic and both logarithms.
    - `critic_statistics`: running statistics of what the critic sees; `None` where it sees what the policy sees.
    """

    encoder: GaussianEncoder
    averaged_encoder: GaussianEncoder
    critic: Critic
    log_temperature: Float[Array, ""]
    log_multiplier: Float[Array, ""]
    optimiser_states: tuple[PyTree, PyTree, PyTree]
    critic_statistics: RunningStatistics | None = None


def _actor(learner_state: REPPOState) -> tuple[PyTree, ...]:
    """What does not move before the encoder starts."""
    encoder_state, _, duals_state = learner_state.optimiser_states
    duals = (learner_state.log_temperature, learner_state.log_multiplier)
    return learner_state.encoder, *duals, encoder_state, duals_state


class Batch(eqx.Module):
    """Steps to learn from, as one flat batch."""

    observation: Float[Array, "batch observation"]
    latent: Float[Array, "batch latent"]
    reward: Float[Array, " batch"]
    next_latent: Float[Array, "batch latent"]
    target: Float[Array, " batch"]
    seen: Float[Array, "batch seen"]  # by the critic
    next_seen: Float[Array, "batch seen"]


@final
class REPPO(AbstractLearner[REPPOState]):
    """Relative entropy pathwise policy optimisation of a Gaussian encoder, with the values of its paper.

    There is no replay buffer and no target network. One iteration gathers `num_envs * unroll_length * num_unrolls`
    steps, computes the value targets once, and takes `num_epochs * num_minibatches` pairs of gradient steps: first the
    critic towards the targets, then the encoder up the gradient of the critic. One bound keeps the encoder near the old
    encoder, which gathered the steps. A second one keeps it near the prior: N(0, I) on latents, the uniform
    distribution on actions, where it is a bound on the entropy.

    **Arguments:**

    - `num_envs`: the number of parallel environments.
    - `unroll_length`, `num_unrolls`: their product is the number of steps of each environment in one iteration.
    - `num_minibatches`, `num_epochs`: gradient steps per pass, and passes over the steps of one iteration.
    - `policy_width`, `policy_depth`, `value_width`, `value_depth`: hidden layers.
    - `policy_norm`, `value_norm`: whether a layer norm follows each hidden layer.
    - `num_bins`: of the critic.
    - `auxiliary_loss`: the critic also predicts the reward and its own features of the next step.
    - `kl_mode`: with `"clipped"` the encoder follows the critic where its divergence from the old encoder is below the
        bound, and goes back elsewhere; with `"full"` the weighted divergence is a penalty everywhere; with `"none"`
        there is no bound.
    - `on_actions`: latents are actions before `tanh`, which the critic sees after it, and the prior is uniform.
    - `keep_critic`: keep the critic and the statistics of observations from stage to stage.
    - `keep_encoder`: keep the encoder from stage to stage: an ablation.
    - `keep_features`: begin a stage with the encoder's hidden layers under a fresh last layer.
    - `encoder_starts`: environment steps of a stage before the first gradient step of the encoder, the temperature and
        the multiplier. Until then the critic learns alone: that of a new stage has not seen what its decoder does.
    - `learn_temperature`: adapt the temperature, so that the divergence from the prior settles at its target.
    - `learning_rate`: Adam's, for encoder and critic.
    - `dual_learning_rate`: Adam's, for the logarithms of temperature and multiplier.
    - `learning_rate_decay`: the share of the learning rates that a linear decay takes away by the end of a run.
    - `max_gradient_norm`: gradients of a greater global norm are scaled down to it.
    - `discount`, `trace_decay`: γ and λ.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `lowest_value`, `highest_value`: the range of the critic's bins; `None` for the discounted sums of rewards from
        -0.1 to 1.2, after scaling. The metric `out_of_range` is the share of targets outside.
    - `auxiliary_loss_coefficient`: weight of the auxiliary loss.
    - `target_divergence`: where KL(encoder ‖ prior) is to settle, in nats per dimension. An entropy of -0.5 per
        dimension is 1.19 with `on_actions`.
    - `initial_temperature`: weight α of the divergence from the prior.
    - `kl_bound`: on KL(old encoder ‖ encoder), in nats.
    - `initial_multiplier`: weight β of that divergence.
    - `average_decay`: decay per iteration of the averaged encoder, which is the one that is evaluated; 0 for the newest
        encoder.

    ??? cite "Reference"

        Voelcker et al. (2025), *Relative Entropy Pathwise Policy Optimization*, arXiv 2507.11019.
    """

    num_envs: int = static_field(1024)
    unroll_length: int = static_field(128)
    num_unrolls: int = static_field(1)
    num_minibatches: int = static_field(64)
    num_epochs: int = static_field(8)
    policy_width: int = static_field(512)
    policy_depth: int = static_field(3)
    value_width: int = static_field(512)
    value_depth: int = static_field(3)
    policy_norm: bool = eqx.field(static=True, default=True)
    value_norm: bool = eqx.field(static=True, default=True)
    num_bins: int = static_field(151, at_least=2)
    auxiliary_loss: bool = eqx.field(static=True, default=False)
    kl_mode: str = eqx.field(static=True, default="clipped")
    on_actions: bool = eqx.field(static=True, default=False)
    keep_critic: bool = eqx.field(static=True, default=False)
    keep_encoder: bool = eqx.field(static=True, default=False)
    keep_features: bool = eqx.field(static=True, default=False)
    learn_temperature: bool = eqx.field(static=True, default=True)
    encoder_starts: Integer = int_field(0, at_least=0)
    learning_rate: Real = float_field(3e-4, above=0)
    dual_learning_rate: Real = float_field(3e-4, above=0)
    learning_rate_decay: Real = float_field(0.0, at_least=0, at_most=1)
    max_gradient_norm: Real = float_field(0.5, above=0)
    discount: Real = float_field(0.99, at_least=0, at_most=1)
    trace_decay: Real = float_field(0.95, at_least=0, at_most=1)
    reward_scale: Real = float_field(1.0, above=0)
    lowest_value: Real | None = float_field(None)
    highest_value: Real | None = float_field(None)
    auxiliary_loss_coefficient: Real = float_field(0.0, at_least=0)
    target_divergence: Real = float_field(1.0, above=0)
    initial_temperature: Real = float_field(0.01, above=0)
    kl_bound: Real = float_field(0.1, above=0)
    initial_multiplier: Real = float_field(0.01, above=0)
    average_decay: Real = float_field(0.95, at_least=0, at_most=1)

    def init(
        self, observation_size: int, latent_size: int, key: RandomKey, critic_observation_size: int | None = None
    ) -> REPPOState:
        encoder_key, trunk_key, head_key, auxiliary_key = jax.random.split(key, 4)
        encoder = GaussianEncoder.init(
            observation_size,
            latent_size,
            self.policy_width,
            self.policy_depth,
            encoder_key,
            normalised=self.policy_norm,
        )
        width, depth = self.value_width, self.value_depth
        # The features are the output of the last hidden layer, so the head is a single layer.
        trunk = mlp(
            (critic_observation_size or observation_size) + latent_size,
            width,
            width,
            depth - 1,
            key=trunk_key,
            normalised=self.value_norm,
            is_hidden=True,
        )
        head = sure_of_zero(mlp(width, self.num_bins, width, 0, key=head_key), self._bins)
        auxiliary_head = mlp(width, width + 1, width, 1, key=auxiliary_key) if self.auxiliary_loss else None
        critic = Critic(trunk, head, auxiliary_head)
        return self._initial_state(encoder, critic, fresh_critic_statistics(critic_observation_size))

    def restart(
        self,
        learner_state: REPPOState,
        observation_size: int,
        latent_size: int,
        key: RandomKey,
        critic_observation_size: int | None = None,
    ) -> REPPOState:
        fresh = self.init(observation_size, latent_size, key, critic_observation_size)
        learner_state = optax.tree.where(
            all_finite(learner_state), learner_state, fresh
        )  # a stage that diverged leaves nothing to keep
        encoder = fresh.encoder
        if self.keep_encoder:
            encoder = learner_state.encoder
        elif self.keep_features:
            encoder = learner_state.encoder.at_prior()
        if not self.keep_critic:
            return self._initial_state(encoder, fresh.critic, fresh.critic_statistics)
        encoder = eqx.tree_at(lambda e: e.statistics, encoder, learner_state.encoder.statistics)
        return self._initial_state(encoder, learner_state.critic, learner_state.critic_statistics)

    def encoder(self, learner_state: REPPOState) -> GaussianEncoder:
        return learner_state.encoder

    def evaluated_encoder(self, learner_state: REPPOState) -> GaussianEncoder:
        return learner_state.averaged_encoder

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
        check_value_bins(self.lowest_value, self.highest_value, self.discount, self.reward_scale)
        if not self.auxiliary_loss and np.any(np.asarray(self.auxiliary_loss_coefficient) > 0):
            raise InputError(
                "learner.auxiliary_loss_coefficient is above 0, and the critic has no auxiliary head: set "
                "learner.auxiliary_loss to true."
            )

    def update(
        self, learner_state: REPPOState, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[REPPOState, dict[str, Float[Array, ""]]]:
        target_key, key = jax.random.split(key)
        batch = self._batch(learner_state, experience, target_key)
        old, scale = learner_state.encoder, 1 - self.learning_rate_decay * progress
        encoder_begun = self._num_seen(learner_state) + experience.reward.size >= self.encoder_starts

        def epoch(learner_state: REPPOState, key: RandomKey) -> tuple[REPPOState, dict[str, Array]]:
            order_key, step_key = jax.random.split(key)
            minibatches = shuffle(order_key, batch.target.shape[0]).reshape(self.num_minibatches, -1)

            def step(
                learner_state: REPPOState, inputs: tuple[Int[Array, " minibatch"], RandomKey]
            ) -> tuple[REPPOState, dict[str, Array]]:
                chosen, key = inputs
                steps = jax.tree.map(lambda leaf: leaf[chosen], batch)
                after, metrics = self._gradient_steps(learner_state, old, steps, key, scale)
                # Not a branch: under vmap over seeds both sides of one would run as well.
                actor = optax.tree.where(encoder_begun, _actor(after), _actor(learner_state))
                return eqx.tree_at(_actor, after, actor), metrics

            return jax.lax.scan(step, learner_state, (minibatches, jax.random.split(step_key, self.num_minibatches)))

        learner_state, metrics = jax.lax.scan(epoch, learner_state, jax.random.split(key, self.num_epochs))
        # The statistics change after the gradient steps: otherwise the old encoder would not be the one that acted.
        learner_state = with_updated_statistics(learner_state, experience)
        learner_state = with_averaged_encoder(learner_state, self.average_decay)
        return learner_state, {name: jnp.mean(metric) for name, metric in metrics.items()}

    def _initial_state(
        self, encoder: GaussianEncoder, critic: Critic, critic_statistics: RunningStatistics | None
    ) -> REPPOState:
        log_temperature, log_multiplier = (
            jnp.log(jnp.asarray(number, jnp.float32)) for number in (self.initial_temperature, self.initial_multiplier)
        )
        duals = (log_temperature, log_multiplier)
        states = tuple(self._optimiser().init(split_trainable(part)[0]) for part in (encoder, critic, duals))
        return REPPOState(encoder, encoder, critic, *duals, states, critic_statistics)  # pyright: ignore[reportArgumentType]

    def _optimiser(self) -> optax.GradientTransformation:
        """Steps of size 1, to be scaled by a learning rate that may change in the course of a run."""
        return usually_promoting(
            optax.chain(
                optax.clip_by_global_norm(self.max_gradient_norm),  # pyright: ignore[reportArgumentType]
                optax.scale_by_adam(),
            )
        )

    def _num_seen(self, learner_state: REPPOState) -> Int[Array, ""]:
        """The environment steps that the critic of this stage has learned from."""
        gradient_steps = optax.tree.get(learner_state.optimiser_states[1], "count")
        return gradient_steps // (self.num_epochs * self.num_minibatches) * self.steps_per_update

    @property
    def _bins(self) -> Bins:
        return value_bins(self.num_bins, self.lowest_value, self.highest_value, self.discount, self.reward_scale)

    def _batch(self, learner_state: REPPOState, experience: Experience, key: RandomKey) -> Batch:
        """Computes the targets once, and flattens the experience into one batch."""
        shape = experience.reward.shape
        steps = (experience.observation, experience.latent, experience.next_observation, *experience.for_critic())
        observation, latent, next_observation, seen, next_seen = (leaf.reshape(-1, leaf.shape[-1]) for leaf in steps)
        next_latent, next_divergence = self._draw(learner_state.encoder, next_observation, key)
        next_value = self._values(learner_state.critic, statistics_for_critic(learner_state), next_seen, next_latent)
        reward = self.reward_scale * experience.reward
        # A step also pays for how far the next latent strays from the prior.
        cost = self.discount * jnp.exp(learner_state.log_temperature) * next_divergence.reshape(shape)
        target = lambda_returns(
            reward - jnp.where(experience.terminated, 0.0, cost),
            next_value.reshape(shape),
            experience.terminated,
            experience.truncated,
            self.discount,
            self.trace_decay,
        )
        return Batch(observation, latent, reward.reshape(-1), next_latent, target.reshape(-1), seen, next_seen)

    def _gradient_steps(
        self, learner_state: REPPOState, old: GaussianEncoder, batch: Batch, key: RandomKey, scale: Real
    ) -> tuple[REPPOState, dict[str, Array]]:
        encoder_state, critic_state, duals_state = learner_state.optimiser_states
        temperature, multiplier = jnp.exp(learner_state.log_temperature), jnp.exp(learner_state.log_multiplier)
        statistics, bins = statistics_for_critic(learner_state), self._bins
        width = max(self.policy_width, self.value_width)

        # The critic, towards the targets.
        trainable, rest = split_trainable(learner_state.critic)

        def critic_loss(trainable: PyTree, steps: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
            critic = eqx.combine(trainable, rest)
            features = self._features(critic, statistics, steps.seen, steps.latent)
            logits = jax.vmap(critic.head)(features)
            loss = jnp.mean(optax.softmax_cross_entropy(logits, bins.project(steps.target)))
            out_of_range = jnp.mean(bins.clip(steps.target) != steps.target)
            metrics = {"critic_loss": loss, "out_of_range": out_of_range}
            return loss + self.auxiliary_loss_coefficient * self._auxiliary_loss(
                critic, statistics, features, steps
            ), metrics

        gradient, critic_metrics = mean_gradient(critic_loss, trainable, batch, width)
        critic, critic_state = self._moved(learner_state.critic, gradient, critic_state, scale * self.learning_rate)

        # The encoder, up the critic, near the old one and near the prior.
        trainable, rest = split_trainable(learner_state.encoder)
        noise = jax.random.normal(key, batch.latent.shape)

        def policy_loss(trainable: PyTree, rows: tuple[Batch, Array]) -> tuple[Float[Array, ""], dict[str, Array]]:
            encoder, (steps, noise) = eqx.combine(trainable, rest), rows
            mean, std = jax.vmap(encoder.distribution)(steps.observation)
            latent = mean + std * noise
            divergence = log_over_prior(latent, mean, std, on_actions=self.on_actions)
            value = self._values(critic, statistics, steps.seen, latent)
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
        encoder, encoder_state = self._moved(learner_state.encoder, gradient, encoder_state, scale * self.learning_rate)

        # Temperature and multiplier rise where the divergence that they weigh is above its target.
        excess = metrics["divergence"] - self.target_divergence * batch.latent.shape[-1]
        duals = (learner_state.log_temperature, learner_state.log_multiplier)
        gradient = (
            -temperature * excess if self.learn_temperature else jnp.zeros(()),
            -multiplier * (metrics["kl"] - self.kl_bound),
        )
        (log_temperature, log_multiplier), duals_state = self._moved(
            duals, gradient, duals_state, scale * self.dual_learning_rate
        )
        states = (encoder_state, critic_state, duals_state)
        learner_state = REPPOState(
            encoder,
            learner_state.averaged_encoder,
            critic,
            log_temperature,
            log_multiplier,
            states,
            learner_state.critic_statistics,
        )
        return learner_state, {**critic_metrics, **metrics, "temperature": temperature, "multiplier": multiplier}

    def _moved(self, part: PyTree, gradient: PyTree, state: PyTree, rate: Real) -> tuple[Any, PyTree]:
        """Applies a gradient step, and returns the state of the optimiser as well."""
        return moved(self._optimiser(), part, gradient, state, -rate)

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
        observation: Float[Array, "batch seen"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, "batch features"]:
        seen = jnp.tanh(latent) if self.on_actions else latent
        inputs = jnp.concatenate([statistics.normalise(observation), seen], axis=-1)
        return map_rows(critic.trunk, inputs, self.value_width)

    def _values(
        self,
        critic: Critic,
        statistics: RunningStatistics,
        observation: Float[Array, "batch seen"],
        latent: Float[Array, "batch latent"],
    ) -> Float[Array, " batch"]:
        features = self._features(critic, statistics, observation, latent)
        return self._bins.mean(jax.vmap(critic.head)(features))

    def _auxiliary_loss(
        self, critic: Critic, statistics: RunningStatistics, features: Float[Array, "batch features"], steps: Batch
    ) -> Float[Array, ""] | float:
        """The error of the features of the next step and of the reward, as predicted from the features of this one."""
        if critic.auxiliary_head is None:
            return 0.0
        following = self._features(critic, statistics, steps.next_seen, steps.next_latent)
        true = jax.lax.stop_gradient(jnp.concatenate([following, steps.reward[:, None]], axis=-1))
        return jnp.mean((jax.vmap(critic.auxiliary_head)(features) - true) ** 2)
