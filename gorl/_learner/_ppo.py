"""Proximal policy optimisation of a Gaussian encoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._advantage import generalised_advantage
from .._errors import InputError
from .._hyperparameters import real, size
from .._network import perceptron
from .._types import RandomKey, Real
from ._base import AbstractLearner, Experience
from ._clipped import clipped_objective, standardise
from ._encoder import GaussianEncoder, entropy, log_density


class PPOMemory(eqx.Module):
    """What PPO carries from update to update."""

    encoder: GaussianEncoder
    value: eqx.nn.MLP
    optimiser_state: PyTree


class Batch(eqx.Module):
    """Steps to learn from, in any order."""

    observation: Float[Array, "batch observation"]
    latent: Float[Array, "batch latent"]
    log_density: Float[Array, " batch"]
    advantage: Float[Array, " batch"]
    target: Float[Array, " batch"]
    counts: Bool[Array, " batch"]  # false where the time limit cut the episode: neither advantage nor value loss


class PPO(AbstractLearner[PPOMemory]):
    """Proximal policy optimisation, with the values of the GoRL paper.

    One iteration gathers `num_envs * unroll_length * num_unrolls` steps, brings the running statistics of the
    observations up to date, estimates advantages once, and takes `num_epochs * num_minibatches` gradient steps over
    freshly shuffled steps.

    **Arguments:**

    - `num_envs`: environments side by side.
    - `unroll_length`: steps between two draws of fresh start states.
    - `num_unrolls`: unrolls in one iteration.
    - `num_minibatches`, `num_epochs`: how the steps of one iteration are learned from.
    - `policy_width`, `policy_depth`, `value_width`, `value_depth`: hidden layers.
    - `keep_value`: keep the value network, and the statistics that its inputs are normalised with, from stage to stage.
        The paper does not. But values belong to states, not to latents, and a stage begins with the behaviour that the
        last one ended with, so they still hold; a fresh value network lets a good policy drift until it has learned.
    - `learning_rate`: Adam's.
    - `max_gradient_norm`: gradients of a greater global norm are scaled down to it.
    - `discount`, `gae_lambda`: γ and λ.
    - `reward_scale`: multiplies rewards before anything is learned from them.
    - `clip`: ε of the clipped objective.
    - `entropy_cost`: weight of the entropy of the latent.
    - `value_cost`: weight of the squared error of the values.
    - `latent_cost`: weight β of `mean μ² + mean σ²`, which pulls the encoder towards small latents.

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
    learning_rate: Real = real(1e-3, above=0)
    max_gradient_norm: Real = real(1.0, above=0)
    discount: Real = real(0.995, at_least=0, at_most=1)
    gae_lambda: Real = real(0.95, at_least=0, at_most=1)
    reward_scale: Real = real(10.0, above=0)
    clip: Real = real(0.2, above=0)
    entropy_cost: Real = real(1e-2, at_least=0)
    value_cost: Real = real(0.25, at_least=0)
    latent_cost: Real = real(0.0, at_least=0)

    def init(self, observation_size: int, latent_size: int, key: RandomKey) -> PPOMemory:
        encoder_key, value_key = jax.random.split(key)
        encoder = GaussianEncoder.init(observation_size, latent_size, self.policy_width, self.policy_depth, encoder_key)
        value = perceptron(observation_size, 1, self.value_width, self.value_depth, key=value_key)
        return self._begin(encoder, value)

    def restart(self, memory: PPOMemory, key: RandomKey) -> PPOMemory:
        network = memory.encoder.network
        fresh = self.init(int(network.in_size), int(network.out_size) // 2, key)
        if not self.keep_value:
            return fresh
        return self._begin(GaussianEncoder(fresh.encoder.network, memory.encoder.statistics), memory.value)

    def encoder(self, memory: PPOMemory) -> GaussianEncoder:
        return memory.encoder

    def metric_names(self) -> tuple[str, ...]:
        return ("policy_loss", "value_loss", "entropy", "approximate_kl", "latent_mean_square", "latent_std")

    def check(self) -> None:
        steps = self.num_envs * self.unroll_length * self.num_unrolls
        if steps % self.num_minibatches:
            raise InputError(
                f"learner.num_minibatches = {self.num_minibatches} does not divide the {steps} steps of an iteration "
                "(num_envs * unroll_length * num_unrolls): choose one that does."
            )

    def update(
        self, memory: PPOMemory, experience: Experience, key: RandomKey
    ) -> tuple[PPOMemory, dict[str, Float[Array, ""]]]:
        statistics = memory.encoder.statistics.update(experience.observation)
        memory = eqx.tree_at(lambda m: m.encoder.statistics, memory, statistics)
        batch = self._batch(memory, experience)

        def epoch(memory: PPOMemory, key: RandomKey) -> tuple[PPOMemory, dict[str, Array]]:
            order = jax.random.permutation(key, batch.advantage.shape[0])
            minibatches = order.reshape(self.num_minibatches, -1)

            def step(memory: PPOMemory, chosen: Int[Array, " minibatch"]) -> tuple[PPOMemory, dict[str, Array]]:
                return self._gradient_step(memory, jax.tree.map(lambda leaf: leaf[chosen], batch))

            return jax.lax.scan(step, memory, minibatches)

        memory, metrics = jax.lax.scan(epoch, memory, jax.random.split(key, self.num_epochs))
        return memory, {name: jnp.mean(figures) for name, figures in metrics.items()}

    def _begin(self, encoder: GaussianEncoder, value: eqx.nn.MLP) -> PPOMemory:
        return PPOMemory(encoder, value, self._optimiser().init((encoder.network, value)))  # pyright: ignore[reportArgumentType]

    def _optimiser(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.max_gradient_norm),  # pyright: ignore[reportArgumentType]
            optax.adam(self.learning_rate),  # pyright: ignore[reportArgumentType]
        )

    def _batch(self, memory: PPOMemory, experience: Experience) -> Batch:
        """Everything that the gradient steps of one iteration need, computed once, in one flat list of steps."""
        normalise = memory.encoder.statistics.normalise
        evaluate = jax.vmap(memory.value)
        values = jax.vmap(evaluate)(normalise(experience.observation))[..., 0]
        final_value = evaluate(normalise(experience.final_observation))[..., 0]
        advantage, target = generalised_advantage(
            self.reward_scale * experience.reward,
            values,
            final_value,
            experience.terminated,
            experience.truncated,
            self.discount,
            self.gae_lambda,
        )
        steps = (experience.observation, experience.latent, experience.extras, advantage, target, ~experience.truncated)
        return Batch(*jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), steps))

    def _gradient_step(self, memory: PPOMemory, batch: Batch) -> tuple[PPOMemory, dict[str, Array]]:
        networks = (memory.encoder.network, memory.value)
        gradient, metrics = eqx.filter_grad(self._loss, has_aux=True)(networks, memory.encoder, batch)
        updates, optimiser_state = self._optimiser().update(gradient, memory.optimiser_state)
        network, value = eqx.apply_updates(networks, updates)
        return PPOMemory(GaussianEncoder(network, memory.encoder.statistics), value, optimiser_state), metrics

    def _loss(
        self, networks: tuple[eqx.nn.MLP, eqx.nn.MLP], encoder: GaussianEncoder, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        network, value = networks
        encoder = GaussianEncoder(network, encoder.statistics)
        mean, std = jax.vmap(encoder.distribution)(batch.observation)
        log_ratio = log_density(batch.latent, mean, std) - batch.log_density
        objective = clipped_objective(log_ratio[:, None], standardise(batch.advantage), batch.counts, self.clip)
        values = jax.vmap(value)(encoder.statistics.normalise(batch.observation))[:, 0]
        value_loss = jnp.mean(batch.counts * (values - batch.target) ** 2)
        mean_entropy = jnp.mean(entropy(std))
        latent_loss = jnp.mean(mean**2) + jnp.mean(std**2)
        loss = (
            -objective
            + self.value_cost * value_loss
            - self.entropy_cost * mean_entropy
            + self.latent_cost * latent_loss
        )
        return loss, {
            "policy_loss": -objective,
            "value_loss": value_loss,
            "entropy": mean_entropy,
            "approximate_kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
            "latent_mean_square": jnp.mean(mean**2),
            "latent_std": jnp.mean(std),
        }
