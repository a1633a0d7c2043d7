"""The clipped update that PPO shares with its relatives: they differ only in how they compute the likelihood ratio."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._advantage import generalised_advantage
from .._backend import map_rows, mean_gradient, shuffle
from .._hyperparameters import float_field, static_field
from .._network import mlp
from .._promotion import usually_promoting
from .._statistics import RunningStatistics
from .._trainable import split_trainable
from .._tree import all_finite
from .._types import RandomKey, Real
from ._base import (
    AbstractEncoder,
    AbstractLearner,
    Experience,
    check_minibatches,
    fresh_critic_statistics,
    statistics_for_critic,
    with_updated_statistics,
)


class ActorCritic(eqx.Module):
    """The state of a clipped learner.

    **Attributes:**

    - `encoder`: the policy.
    - `value`: the value network.
    - `optimiser_state`: Adam's, for both.
    - `critic_statistics`: running statistics of what the value network sees; `None` where it sees what the policy sees.
    """

    encoder: AbstractEncoder
    value: eqx.nn.MLP
    optimiser_state: PyTree
    critic_statistics: RunningStatistics | None = None


class PolicyTerms(eqx.Module):
    """The terms of the policy loss for one step.

    **Attributes:**

    - `log_ratio`: logarithms of the new over the old likelihood. PPO has one; other learners have several.
    - `regulariser`: added to the loss.
    - `metrics`: numbers to watch, which the update averages over steps.
    """

    log_ratio: Float[Array, " ratios"]
    regulariser: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


class Batch(eqx.Module):
    """Steps to learn from, as one flat batch."""

    observation: Float[Array, "batch observation"]
    latent: Float[Array, "batch latent"]
    extras: PyTree[Array]  # the encoder's, of each step
    advantage: Float[Array, " batch"]
    target: Float[Array, " batch"]
    critic_observation: Float[Array, "batch critic_observation"] | None


class AbstractClippedLearner(AbstractLearner[ActorCritic]):
    """Proximal policy optimisation of any encoder that has a likelihood ratio of a step.

    One iteration gathers `num_envs * unroll_length * num_unrolls` steps, estimates advantages once, takes
    `num_epochs * num_minibatches` gradient steps over freshly shuffled steps, and then brings the running statistics of
    the observations up to date. A relative of PPO is a subclass with an encoder and an [`policy_terms`][].

    **Arguments:**

    - `num_envs`: the number of parallel environments.
    - `unroll_length`, `num_unrolls`: their product is the number of steps of each environment in one iteration.
    - `num_minibatches`, `num_epochs`: gradient steps per pass, and passes over the steps of one iteration.
    - `policy_width`, `policy_depth`, `value_width`, `value_depth`: hidden layers.
    - `keep_value`: keep the value network and the statistics of its inputs from stage to stage. The paper does not. But
        values belong to states, not to latents, and a stage begins with the behaviour that the last one ended with, so
        they stay valid. A fresh value network lets a good policy drift until it has learned.
    - `keep_encoder`: keep the encoder as well: the paper's ablation, in which returns drop at every new decoder.
    - `asymmetric`: a quadratic penalty replaces the clip where the advantage is negative.
    - `learning_rate`: Adam's.
    - `learning_rate_decay`: the share of the learning rate that a linear decay takes away by the end of a run: 0 for
        none, as in the paper, 1 for all of it.
    - `max_gradient_norm`: gradients of a greater global norm are scaled down to it.
    - `discount`, `gae_lambda`: γ and λ.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `clip_epsilon`: ε of the clipped objective.
    - `value_loss_coefficient`: weight of the squared error of the values.

    ??? cite "Reference"

        Schulman et al. (2017), *Proximal Policy Optimization Algorithms*.
    """

    num_envs: int = static_field(2048)
    unroll_length: int = static_field(30)
    num_unrolls: int = static_field(16)
    num_minibatches: int = static_field(32)
    num_epochs: int = static_field(16)
    policy_width: int = static_field(32)
    policy_depth: int = static_field(4)
    value_width: int = static_field(256)
    value_depth: int = static_field(5)
    keep_value: bool = eqx.field(static=True, default=False)
    keep_encoder: bool = eqx.field(static=True, default=False)
    asymmetric: bool = eqx.field(static=True, default=False)
    learning_rate: Real = float_field(1e-3, above=0)
    learning_rate_decay: Real = float_field(0.0, at_least=0, at_most=1)
    max_gradient_norm: Real = float_field(1.0, above=0)
    discount: Real = float_field(0.995, at_least=0, at_most=1)
    gae_lambda: Real = float_field(0.95, at_least=0, at_most=1)
    reward_scale: Real = float_field(10.0, above=0)
    clip_epsilon: Real = float_field(0.2, above=0)
    value_loss_coefficient: Real = float_field(0.25, at_least=0)

    @abc.abstractmethod
    def fresh_encoder(self, observation_size: int, latent_size: int, key: RandomKey) -> AbstractEncoder:
        """An encoder to begin with."""

    @abc.abstractmethod
    def policy_terms(
        self,
        encoder: AbstractEncoder,
        observation: Float[Array, " observation"],
        latent: Float[Array, " latent"],
        extras: PyTree[Array],
    ) -> PolicyTerms:
        """The terms of the policy loss for one step, given its observation, latent and extras."""

    @abc.abstractmethod
    def policy_metric_names(self) -> tuple[str, ...]:
        """The names of the metrics in an assessment."""

    @property
    def encoder_width(self) -> int:
        """The width of the widest layer of the encoder, times its evaluations for one step.

        A concrete default, as only learners that evaluate the encoder several times a step override it.
        """
        return self.policy_width

    def init(
        self, observation_size: int, latent_size: int, key: RandomKey, critic_observation_size: int | None = None
    ) -> ActorCritic:
        encoder_key, value_key = jax.random.split(key)
        encoder = self.fresh_encoder(observation_size, latent_size, encoder_key)
        value_inputs = critic_observation_size or observation_size
        value = mlp(value_inputs, 1, self.value_width, self.value_depth, key=value_key)
        return self._initial_state(encoder, value, fresh_critic_statistics(critic_observation_size))

    def restart(
        self,
        learner_state: ActorCritic,
        observation_size: int,
        latent_size: int,
        key: RandomKey,
        critic_observation_size: int | None = None,
    ) -> ActorCritic:
        fresh = self.init(observation_size, latent_size, key, critic_observation_size)
        learner_state = optax.tree.where(
            all_finite(learner_state), learner_state, fresh
        )  # a stage that diverged leaves nothing to keep
        last = learner_state.encoder
        encoder = last if self.keep_encoder else self.next_encoder(last, fresh.encoder)
        if not self.keep_value:
            return self._initial_state(encoder, fresh.value, fresh.critic_statistics)
        encoder = eqx.tree_at(lambda e: e.statistics, encoder, learner_state.encoder.statistics)
        return self._initial_state(encoder, learner_state.value, learner_state.critic_statistics)

    def next_encoder(self, last: AbstractEncoder, fresh: AbstractEncoder) -> AbstractEncoder:
        """The encoder that a stage begins with, given the last one and a fresh one.

        A concrete default, as only learners that can keep a part of the last encoder override it.
        """
        return fresh

    def encoder(self, learner_state: ActorCritic) -> AbstractEncoder:
        return learner_state.encoder

    def evaluated_encoder(self, learner_state: ActorCritic) -> AbstractEncoder:
        return learner_state.encoder

    def metric_names(self) -> tuple[str, ...]:
        return ("policy_loss", "value_loss", "approximate_kl", "clip_fraction", *self.policy_metric_names())

    def check(self) -> None:
        check_minibatches(self.num_minibatches, self.steps_per_update)

    def update(
        self, learner_state: ActorCritic, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[ActorCritic, dict[str, Float[Array, ""]]]:
        batch = self._batch(learner_state, experience)
        optimiser = self._optimiser(progress)

        def epoch(learner_state: ActorCritic, key: RandomKey) -> tuple[ActorCritic, dict[str, Array]]:
            order = shuffle(key, batch.advantage.shape[0])
            minibatches = order.reshape(self.num_minibatches, -1)

            def step(
                learner_state: ActorCritic, chosen: Int[Array, " minibatch"]
            ) -> tuple[ActorCritic, dict[str, Array]]:
                return self._gradient_step(learner_state, jax.tree.map(lambda leaf: leaf[chosen], batch), optimiser)

            return jax.lax.scan(step, learner_state, minibatches)

        learner_state, metrics = jax.lax.scan(epoch, learner_state, jax.random.split(key, self.num_epochs))
        # The statistics change after the gradient steps: otherwise the first ratios would not be 1.
        learner_state = with_updated_statistics(learner_state, experience)
        return learner_state, {name: jnp.mean(metrics) for name, metrics in metrics.items()}

    def _initial_state(
        self, encoder: AbstractEncoder, value: eqx.nn.MLP, critic_statistics: RunningStatistics | None
    ) -> ActorCritic:
        trainable, _ = split_trainable((encoder, value))
        return ActorCritic(encoder, value, self._optimiser().init(trainable), critic_statistics)

    def _optimiser(self, progress: Real = 0.0) -> optax.GradientTransformation:
        return usually_promoting(
            optax.chain(
                optax.clip_by_global_norm(self.max_gradient_norm),  # pyright: ignore[reportArgumentType]
                optax.adam(self.learning_rate * (1 - self.learning_rate_decay * progress)),  # pyright: ignore[reportArgumentType]
            )
        )

    def _batch(self, learner_state: ActorCritic, experience: Experience) -> Batch:
        """Computes advantages and targets once, and flattens the experience into one batch."""

        def values(observation: Float[Array, "time envs seen"]) -> Float[Array, "time envs"]:
            # One flat batch: with two axes XLA puts transposes around every matrix product.
            rows = statistics_for_critic(learner_state).normalise(observation).reshape(-1, observation.shape[-1])
            return map_rows(learner_state.value, rows, self.value_width).reshape(observation.shape[:-1])

        observation, next_observation = experience.for_critic()
        advantage, target = generalised_advantage(
            self.reward_scale * experience.reward,
            values(observation),
            values(next_observation),
            experience.terminated,
            experience.truncated,
            self.discount,
            self.gae_lambda,
        )
        steps = (experience.observation, experience.latent, experience.extras, advantage, target)
        steps = (*steps, experience.critic_observation)
        return Batch(*jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), steps))

    def _gradient_step(
        self, learner_state: ActorCritic, batch: Batch, optimiser: optax.GradientTransformation
    ) -> tuple[ActorCritic, dict[str, Array]]:
        trainable, rest = split_trainable((learner_state.encoder, learner_state.value))
        batch = eqx.tree_at(lambda b: b.advantage, batch, standardise(batch.advantage))

        def loss(trainable: PyTree, steps: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
            encoder, value = eqx.combine(trainable, rest)
            return self._loss(encoder, value, statistics_for_critic(learner_state), steps)

        gradient, metrics = mean_gradient(loss, trainable, batch, max(self.encoder_width, self.value_width))
        updates, optimiser_state = optimiser.update(gradient, learner_state.optimiser_state)
        encoder, value = eqx.combine(eqx.apply_updates(trainable, updates), rest)
        return ActorCritic(encoder, value, optimiser_state, learner_state.critic_statistics), metrics

    def _loss(
        self, encoder: AbstractEncoder, value: eqx.nn.MLP, statistics: RunningStatistics, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss and the metrics, each a mean over steps. Advantages have been standardised."""
        step = (batch.observation, batch.latent, batch.extras)
        terms = jax.vmap(self.policy_terms, in_axes=(None, 0, 0, 0))(encoder, *step)
        log_ratio = terms.log_ratio
        objective = clipped_objective(log_ratio, batch.advantage, self.clip_epsilon, asymmetric=self.asymmetric)
        seen = batch.observation if batch.critic_observation is None else batch.critic_observation
        values = jax.vmap(value)(statistics.normalise(seen))[:, 0]
        value_loss = jnp.mean((values - batch.target) ** 2)
        return -objective + self.value_loss_coefficient * value_loss + jnp.mean(terms.regulariser), {
            "policy_loss": -objective,
            "value_loss": value_loss,
            "approximate_kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
            "clip_fraction": jnp.mean(jnp.abs(jnp.expm1(log_ratio)) > self.clip_epsilon),
            **{name: jnp.mean(metrics) for name, metrics in terms.metrics.items()},
        }


def clipped_objective(
    log_ratio: Float[Array, "batch ratios"],
    advantage: Float[Array, " batch"],
    clip_epsilon: Real,
    *,
    asymmetric: bool = False,
) -> Float[Array, ""]:
    """The clipped surrogate objective, to be maximised.

    **Arguments:**

    - `log_ratio`: the logarithms of the new over the old likelihood. PPO has one for each step. FPO has one for each
        Monte-Carlo sample and DPPO one for each denoising step; each is clipped by itself.
    - `advantage`: of each step.
    - `clip_epsilon`: ε, the distance from 1 beyond which a ratio gains nothing.
    - `asymmetric`: where the advantage A is negative, `ratio A - |A|/(2ε) (ratio - 1)²` replaces the clip. It pulls the
        ratio back to the trust region, where the clip has no gradient.

    ??? cite "Reference"

        Schulman et al. (2017), *Proximal Policy Optimization Algorithms*, equation (7). Asymmetric: Yi et al. (2026),
        *Flow Policy Gradients for Robot Control*, arXiv 2602.02481.
    """
    ratio = jnp.exp(log_ratio)
    gain = advantage[:, None]
    objective = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - clip_epsilon, 1 + clip_epsilon) * gain)
    if asymmetric:
        pulled = ratio * gain - jnp.abs(gain) / (2 * clip_epsilon) * (ratio - 1) ** 2
        objective = jnp.where(gain >= 0, objective, pulled)
    return jnp.mean(objective)


def standardise(advantage: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Advantages at zero mean and unit variance."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
