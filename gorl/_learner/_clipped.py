"""The clipped update that PPO shares with its relatives: they differ only in how a likelihood ratio is had."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._advantage import generalised_advantage
from .._blocks import map_rows, mean_gradient
from .._hyperparameters import real, size
from .._network import perceptron
from .._promotion import usually_promoting
from .._shuffle import shuffle
from .._trainable import split_trainable
from .._tree import is_finite, where
from .._types import RandomKey, Real
from ._base import AbstractEncoder, AbstractLearner, Experience, check_minibatches


class ActorCritic(eqx.Module):
    """What a clipped learner carries from update to update."""

    encoder: AbstractEncoder
    value: eqx.nn.MLP
    optimiser_state: PyTree


class Assessment(eqx.Module):
    """What an encoder says now of one step in the past."""

    log_ratio: Float[Array, " ratios"]  # logarithms of new over old likelihood, in as many ways as the learner has
    cost: Float[Array, ""]  # added to the loss as it is: regularisers
    metrics: dict[str, Float[Array, ""]]  # figures to watch; the update averages them over steps


class Batch(eqx.Module):
    """Steps to learn from, in any order."""

    observation: Float[Array, "batch observation"]
    latent: Float[Array, "batch latent"]
    extras: PyTree[Array]  # what the encoder wanted to be remembered of each step
    advantage: Float[Array, " batch"]
    target: Float[Array, " batch"]


class AbstractClippedLearner(AbstractLearner[ActorCritic]):
    """Proximal policy optimisation of any encoder that can compare how likely it makes a step with how likely it was.

    One iteration gathers `num_envs * unroll_length * num_unrolls` steps, estimates advantages once, takes
    `num_epochs * num_minibatches` gradient steps over freshly shuffled steps, and then brings the running statistics of
    the observations up to date. A relative of PPO is a subclass with an encoder and an [`assess`][].

    **Arguments:**

    - `num_envs`: environments side by side.
    - `unroll_length`, `num_unrolls`: steps in a row of each environment, and how many times as many in one iteration.
    - `num_minibatches`, `num_epochs`: how the steps of one iteration are learned from.
    - `policy_width`, `policy_depth`, `value_width`, `value_depth`: hidden layers.
    - `keep_value`: keep the value network, and the statistics that its inputs are normalised with, from stage to stage.
        The paper does not. But values belong to states, not to latents, and a stage begins with the behaviour that the
        last one ended with, so they still hold; a fresh value network lets a good policy drift until it has learned.
    - `keep_encoder`: keep the encoder as well: the paper's ablation, in which returns drop at every new decoder.
    - `asymmetric`: where the advantage is negative, a quadratic penalty in place of the clip.
    - `learning_rate`: Adam's.
    - `annealing`: how much of the learning rate is taken away, little by little, from the beginning of a run to its
        end: 0 for none, as in the paper, 1 for all of it.
    - `max_gradient_norm`: gradients of a greater global norm are scaled down to it.
    - `discount`, `gae_lambda`: γ and λ.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `clip`: ε of the clipped objective.
    - `value_cost`: weight of the squared error of the values.

    ??? cite "Reference"

        Schulman et al. (2017), *Proximal Policy Optimization Algorithms*.
    """

    num_envs: int = size(2048)
    unroll_length: int = size(30)
    num_unrolls: int = size(16)
    num_minibatches: int = size(32)
    num_epochs: int = size(16)
    policy_width: int = size(32)
    policy_depth: int = size(4)
    value_width: int = size(256)
    value_depth: int = size(5)
    keep_value: bool = eqx.field(static=True, default=False)
    keep_encoder: bool = eqx.field(static=True, default=False)
    asymmetric: bool = eqx.field(static=True, default=False)
    learning_rate: Real = real(1e-3, above=0)
    annealing: Real = real(0.0, at_least=0, at_most=1)
    max_gradient_norm: Real = real(1.0, above=0)
    discount: Real = real(0.995, at_least=0, at_most=1)
    gae_lambda: Real = real(0.95, at_least=0, at_most=1)
    reward_scale: Real = real(10.0, above=0)
    clip: Real = real(0.2, above=0)
    value_cost: Real = real(0.25, at_least=0)

    @abc.abstractmethod
    def fresh_encoder(self, observation_size: int, latent_size: int, key: RandomKey) -> AbstractEncoder:
        """An encoder to begin with."""

    @abc.abstractmethod
    def assess(
        self,
        encoder: AbstractEncoder,
        observation: Float[Array, " observation"],
        latent: Float[Array, " latent"],
        extras: PyTree[Array],
    ) -> Assessment:
        """What `encoder` says now of a step: where it was, what was drawn there, and what was remembered of it."""

    @abc.abstractmethod
    def assessment_names(self) -> tuple[str, ...]:
        """The names of the figures in an assessment."""

    @property
    def encoder_width(self) -> int:
        """How many numbers the widest layer of the encoder makes of one step that is assessed."""
        return self.policy_width

    def init(self, observation_size: int, latent_size: int, key: RandomKey) -> ActorCritic:
        encoder_key, value_key = jax.random.split(key)
        encoder = self.fresh_encoder(observation_size, latent_size, encoder_key)
        value = perceptron(observation_size, 1, self.value_width, self.value_depth, key=value_key)
        return self._begin(encoder, value)

    def restart(self, memory: ActorCritic, observation_size: int, latent_size: int, key: RandomKey) -> ActorCritic:
        fresh = self.init(observation_size, latent_size, key)
        memory = where(is_finite(memory), memory, fresh)  # a stage that diverged leaves nothing to keep
        encoder = self.next_encoder(memory.encoder, fresh.encoder)
        if not self.keep_value:
            return self._begin(encoder, fresh.value)
        encoder = eqx.tree_at(lambda e: e.statistics, encoder, memory.encoder.statistics)
        return self._begin(encoder, memory.value)

    def next_encoder(self, last: AbstractEncoder, fresh: AbstractEncoder) -> AbstractEncoder:
        """What a stage begins with, of the encoder that the last one ended with and a fresh one."""
        return last if self.keep_encoder else fresh

    def encoder(self, memory: ActorCritic) -> AbstractEncoder:
        return memory.encoder

    def metric_names(self) -> tuple[str, ...]:
        return ("policy_loss", "value_loss", "approximate_kl", "clip_fraction", *self.assessment_names())

    def check(self) -> None:
        check_minibatches(self.num_minibatches, self.steps_per_update)

    def update(
        self, memory: ActorCritic, experience: Experience, key: RandomKey, progress: Real = 0.0
    ) -> tuple[ActorCritic, dict[str, Float[Array, ""]]]:
        batch = self._batch(memory, experience)
        optimiser = self._optimiser(progress)

        def epoch(memory: ActorCritic, key: RandomKey) -> tuple[ActorCritic, dict[str, Array]]:
            order = shuffle(key, batch.advantage.shape[0])
            minibatches = order.reshape(self.num_minibatches, -1)

            def step(memory: ActorCritic, chosen: Int[Array, " minibatch"]) -> tuple[ActorCritic, dict[str, Array]]:
                return self._gradient_step(memory, jax.tree.map(lambda leaf: leaf[chosen], batch), optimiser)

            return jax.lax.scan(step, memory, minibatches)

        memory, metrics = jax.lax.scan(epoch, memory, jax.random.split(key, self.num_epochs))
        # Only now: with other statistics the first ratios would not be 1, and those of narrow policies all be clipped.
        statistics = memory.encoder.statistics.update(experience.observation)
        memory = eqx.tree_at(lambda m: m.encoder.statistics, memory, statistics)
        return memory, {name: jnp.mean(figures) for name, figures in metrics.items()}

    def _begin(self, encoder: AbstractEncoder, value: eqx.nn.MLP) -> ActorCritic:
        trainable, _ = split_trainable((encoder, value))
        return ActorCritic(encoder, value, self._optimiser().init(trainable))

    def _optimiser(self, progress: Real = 0.0) -> optax.GradientTransformation:
        return usually_promoting(
            optax.chain(
                optax.clip_by_global_norm(self.max_gradient_norm),  # pyright: ignore[reportArgumentType]
                optax.adam(self.learning_rate * (1 - self.annealing * progress)),  # pyright: ignore[reportArgumentType]
            )
        )

    def _batch(self, memory: ActorCritic, experience: Experience) -> Batch:
        """Everything that the gradient steps of one iteration need, computed once, in one flat list of steps."""

        def values(observation: Float[Array, "time envs observation"]) -> Float[Array, "time envs"]:
            # One flat batch: with two axes every product of matrices would have transposes around it.
            rows = memory.encoder.statistics.normalise(observation).reshape(-1, observation.shape[-1])
            return map_rows(memory.value, rows, self.value_width).reshape(observation.shape[:-1])

        advantage, target = generalised_advantage(
            self.reward_scale * experience.reward,
            values(experience.observation),
            values(experience.next_observation),
            experience.terminated,
            experience.truncated,
            self.discount,
            self.gae_lambda,
        )
        steps = (experience.observation, experience.latent, experience.extras, advantage, target)
        return Batch(*jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), steps))

    def _gradient_step(
        self, memory: ActorCritic, batch: Batch, optimiser: optax.GradientTransformation
    ) -> tuple[ActorCritic, dict[str, Array]]:
        trainable, rest = split_trainable((memory.encoder, memory.value))
        batch = eqx.tree_at(lambda b: b.advantage, batch, standardise(batch.advantage))

        def loss(trainable: PyTree, steps: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
            encoder, value = eqx.combine(trainable, rest)
            return self._loss(encoder, value, steps)

        gradient, metrics = mean_gradient(loss, trainable, batch, max(self.encoder_width, self.value_width))
        updates, optimiser_state = optimiser.update(gradient, memory.optimiser_state)
        encoder, value = eqx.combine(eqx.apply_updates(trainable, updates), rest)
        return ActorCritic(encoder, value, optimiser_state), metrics

    def _loss(
        self, encoder: AbstractEncoder, value: eqx.nn.MLP, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Of steps whose advantages have been standardised; a mean over steps, as all of the figures are."""
        step = (batch.observation, batch.latent, batch.extras)
        assessment = jax.vmap(self.assess, in_axes=(None, 0, 0, 0))(encoder, *step)
        log_ratio = assessment.log_ratio
        objective = clipped_objective(log_ratio, batch.advantage, self.clip, asymmetric=self.asymmetric)
        values = jax.vmap(value)(encoder.statistics.normalise(batch.observation))[:, 0]
        value_loss = jnp.mean((values - batch.target) ** 2)
        return -objective + self.value_cost * value_loss + jnp.mean(assessment.cost), {
            "policy_loss": -objective,
            "value_loss": value_loss,
            "approximate_kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
            "clip_fraction": jnp.mean(jnp.abs(jnp.expm1(log_ratio)) > self.clip),
            **{name: jnp.mean(figures) for name, figures in assessment.metrics.items()},
        }


def clipped_objective(
    log_ratio: Float[Array, "batch ratios"],
    advantage: Float[Array, " batch"],
    clip: Real,
    *,
    asymmetric: bool = False,
) -> Float[Array, ""]:
    """The clipped surrogate objective, to be maximised.

    **Arguments:**

    - `log_ratio`: the logarithms of new over old likelihood. PPO has one for each action; methods that see an action in
        several ways (by Monte-Carlo sample, by denoising step) have several, each clipped on its own.
    - `advantage`: what each action was worth.
    - `clip`: how far from 1 a ratio is rewarded for moving, ε.
    - `asymmetric`: where the advantage A is negative, `ratio A - |A|/(2ε) (ratio - 1)²` instead: a pull back to the
        trust region rather than a gradient of zero outside it.

    ??? cite "Reference"

        Schulman et al. (2017), *Proximal Policy Optimization Algorithms*, equation (7). Asymmetric: Yi et al. (2026),
        *Flow Policy Gradients for Robot Control*, arXiv 2602.02481.
    """
    ratio = jnp.exp(log_ratio)
    gain = advantage[:, None]
    objective = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - clip, 1 + clip) * gain)
    if asymmetric:
        pulled = ratio * gain - jnp.abs(gain) / (2 * clip) * (ratio - 1) ** 2
        objective = jnp.where(gain >= 0, objective, pulled)
    return jnp.mean(objective)


def standardise(advantage: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Advantages at zero mean and unit variance."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
