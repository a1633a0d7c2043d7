"""The clipped update that PPO shares with its relatives: they differ only in how a likelihood ratio is had."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Real


def clipped_objective(
    log_ratio: Float[Array, "batch ratios"],
    advantage: Float[Array, " batch"],
    counts: Bool[Array, " batch"],
    clip: Real,
) -> Float[Array, ""]:
    """The clipped surrogate objective, to be maximised.

    **Arguments:**

    - `log_ratio`: the logarithms of new over old likelihood. PPO has one for each action; methods that see an action in
        several ways (by Monte-Carlo sample, by denoising step) have several, each clipped on its own.
    - `advantage`: what each action was worth.
    - `counts`: whether the step counts; the others add nothing.
    - `clip`: how far from 1 a ratio is rewarded for moving, ε.

    ??? cite "Reference"

        Schulman et al. (2017), *Proximal Policy Optimization Algorithms*, equation (7).
    """
    ratio = jnp.exp(log_ratio)
    gain = jnp.where(counts, advantage, 0.0)[:, None]
    return jnp.mean(jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - clip, 1 + clip) * gain))


def standardise(advantage: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Advantages at zero mean and unit variance."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
