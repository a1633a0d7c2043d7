"""Proximal policy optimisation of a Gaussian encoder."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._gaussian import entropy, entropy_after_tanh, log_density
from .._hyperparameters import float_field
from .._types import RandomKey, Real
from ._base import AbstractEncoder
from ._clipped import AbstractClippedLearner, PolicyTerms
from ._encoder import GaussianEncoder


@final
class PPO(AbstractClippedLearner):
    """Proximal policy optimisation of a Gaussian encoder, with the values of the GoRL paper.

    **Arguments:**

    Those of [`AbstractClippedLearner`][], and

    - `on_actions`: latents are actions before `tanh`, and the entropy is that of the action: the Gaussian policy that
        GoRL is compared with.
    - `keep_features`: begin a stage with the hidden layers and the statistics of the last encoder, under a fresh last
        layer. The encoder starts at N(0, I) like any fresh one, but keeps its features. The paper does not do this.
    - `entropy_coefficient`: weight of the entropy of the latent.
    - `latent_coefficient`: weight β of `mean μ² + mean σ²`, which pulls the encoder towards small latents.

    ??? cite "Reference"

        Schulman et al. (2017), *Proximal Policy Optimization Algorithms*.
    """

    on_actions: bool = eqx.field(static=True, default=False)
    keep_features: bool = eqx.field(static=True, default=False)
    entropy_coefficient: Real = float_field(1e-2, at_least=0)
    latent_coefficient: Real = float_field(0.0, at_least=0)

    def fresh_encoder(self, observation_size: int, latent_size: int, key: RandomKey) -> GaussianEncoder:
        return GaussianEncoder.init(observation_size, latent_size, self.policy_width, self.policy_depth, key)

    def next_encoder(self, last: AbstractEncoder, fresh: AbstractEncoder) -> AbstractEncoder:
        if not self.keep_features:
            return fresh
        assert isinstance(last, GaussianEncoder)
        return last.at_prior()

    def policy_metric_names(self) -> tuple[str, ...]:
        return ("entropy", "latent_mean_square", "latent_std")

    def policy_terms(
        self,
        encoder: AbstractEncoder,
        observation: Float[Array, " observation"],
        latent: Float[Array, " latent"],
        extras: Float[Array, ""],
    ) -> PolicyTerms:
        assert isinstance(encoder, GaussianEncoder)
        mean, std = encoder.distribution(observation)
        log_ratio = log_density(latent, mean, std) - extras
        of_action = entropy_after_tanh(mean, std) if self.on_actions else entropy(std)
        mean_square = jnp.mean(mean**2)
        return PolicyTerms(
            log_ratio[None],
            self.latent_coefficient * (mean_square + jnp.mean(std**2)) - self.entropy_coefficient * of_action,
            {"entropy": of_action, "latent_mean_square": mean_square, "latent_std": jnp.mean(std)},
        )
