"""The regression of a decoder on a dataset of a policy."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._backend import longest_axis, map_rows, mean_gradient, shuffle
from ._decoder import AbstractDecoder
from ._errors import InputError
from ._hyperparameters import float_field, int_field, static_field
from ._promotion import usually_promoting
from ._trainable import split_trainable
from ._types import Integer, RandomKey, RandomKeys, Real


class Refinement(eqx.Module):
    """The hyperparameters of the regression between two stages, with the values of the GoRL paper.

    **Arguments:**

    - `num_episodes`: new episodes of the best policy that make the dataset.
    - `stride`: of each episode, one step in this many is kept; an incomplete stride at the end is dropped.
    - `num_validation_episodes`: the number of them that validate, to decide when to stop.
    - `num_noise_samples`: latents that each action is paired with; new ones in every epoch.
    - `own_latents`: pair each action with the encoder's latent for it, instead of samples from N(0, I). The paper's
        ablation: such a decoder only reproduces itself.
    - `batch_size`: pairs in one gradient step.
    - `num_epochs`: the most passes over the pairs.
    - `patience`: stop after this many passes without a better loss on the pairs held out.
    - `learning_rate`: Adam's.
    """

    num_episodes: int = static_field(512, at_least=2)
    stride: int = static_field(1)
    num_validation_episodes: int = static_field(51)
    num_noise_samples: int = static_field(8)
    own_latents: bool = eqx.field(static=True, default=False)
    batch_size: int = static_field(8192)
    num_epochs: int = static_field(50)
    patience: Integer = int_field(20, at_least=1)
    learning_rate: Real = float_field(3e-4, above=0)

    def check(self, num_steps: int) -> None:
        """Checks the sizes against each other and against an episode of `num_steps` steps.

        **Raises:**

        `gorl.InputError`
        """
        if self.stride > num_steps:
            raise InputError(
                f"refinement.stride = {self.stride} is more than the {num_steps} steps of an episode: set it to 1, "
                "which keeps every step."
            )
        if self.num_validation_episodes >= self.num_episodes:
            raise InputError(
                f"refinement.num_validation_episodes = {self.num_validation_episodes} leaves none of the "
                f"{self.num_episodes} episodes to fit: hold out fewer."
            )
        num_pairs = (self.num_episodes - self.num_validation_episodes) * (num_steps // self.stride)
        if self.batch_size > num_pairs:
            raise InputError(
                f"refinement.batch_size = {self.batch_size} is more than the {num_pairs} pairs there are to fit: "
                f"choose a batch of at most {num_pairs}, more episodes or a smaller stride."
            )


class Fit(eqx.Module):
    """The outcome of a regression.

    **Attributes:**

    - `training_loss`: the mean of the last epoch.
    - `validation_loss`: the lowest, which chose the decoder.
    - `num_epochs`: passes over the dataset.
    """

    training_loss: Float[Array, "*batch"]
    validation_loss: Float[Array, "*batch"]
    num_epochs: Int[Array, "*batch"]

    @staticmethod
    def unknown(count: int) -> "Fit":
        """The outcomes of regressions that have not been yet: NaN, after no epochs."""
        losses = jnp.full(count, jnp.nan, jnp.float32)
        return Fit(losses, losses, jnp.zeros(count, jnp.int32))


class FitCurve(eqx.Module):
    """A regression epoch by epoch; NaN after its last.

    **Attributes:**

    - `training_loss`: the mean of each epoch.
    - `validation_loss`: after each epoch.
    """

    training_loss: Float[Array, "*batch epochs"]
    validation_loss: Float[Array, "*batch epochs"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some of all pairs, numbered from 0.

    **Arguments:**

    - `count`: how many.
    - `index`: the index of each number in all pairs.
    """

    count: int
    index: Callable[[Int[Array, " pairs"]], Int[Array, " pairs"]]


class _Search(eqx.Module):
    """The state of a regression between two epochs."""

    decoder: AbstractDecoder
    optimiser_state: PyTree
    best: AbstractDecoder
    fit: Fit
    curve: FitCurve
    stale: Int[Array, ""]  # epochs since the best


def fit_decoder(
    decoder: AbstractDecoder,
    observations: Float[Array, "kept episodes observation"],
    actions: Float[Array, "kept episodes action"],
    refinement: Refinement,
    key: RandomKey,
    latents: Float[Array, "kept episodes action"] | None = None,
) -> tuple[AbstractDecoder, Fit]:
    """Fits a decoder to pairs of observation and action, and returns the one with the lowest validation loss.

    Whole episodes validate, not single pairs, as neighbours in time are too alike. The validation loss has the same
    noise in every epoch.

    **Arguments:**

    - `decoder`: the initial decoder; its statistics do not change.
    - `observations`, `actions`: the pairs, as [`collect_dataset`][] returns them; actions before `tanh`.
    - `refinement`: the hyperparameters.
    - `key`: decides order and noise.
    - `latents`: the latent of each action; `None` for samples from N(0, I), independent of it.

    **Returns:**

    The decoder, and how it went.

    **Raises:**

    `gorl.InputError` if there is not one observation, and one latent of the same size, for each action.
    """
    num_kept, num_episodes = actions.shape[:2]
    if observations.shape[:-1] != actions.shape[:-1] or (latents is not None and latents.shape != actions.shape):
        shapes = [array.shape for array in (observations, actions, latents) if array is not None]
        raise InputError(
            f"arrays of shapes {', '.join(map(str, shapes))} do not go together: give an observation, and a latent of "
            "the same size, for each action, as gorl.collect_dataset does."
        )

    def of(first_episode: int, count: int) -> Rows:
        """The pairs of `count` episodes."""

        def index(number: Int[Array, " pairs"]) -> Int[Array, " pairs"]:
            time, episode = jnp.divmod(number, count)
            return time * num_episodes + first_episode + episode

        return Rows(num_kept * count, index)

    num_validation = refinement.num_validation_episodes
    held_out, fitted = of(0, num_validation), of(num_validation, num_episodes - num_validation)
    pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), (observations, actions, latents))
    return fit_pairs(decoder, pairs, fitted, held_out, refinement, key)[:2]


def fit_pairs(
    decoder: AbstractDecoder,
    pairs: tuple[Float[Array, "pairs observation"], Float[Array, "pairs action"], Float[Array, "pairs action"] | None],
    fitted: Rows,
    held_out: Rows,
    refinement: Refinement,
    key: RandomKey,
) -> tuple[AbstractDecoder, Fit, FitCurve]:
    """Fits a decoder to some pairs, and returns the one with the lowest loss on the others.

    **Arguments:**

    - `pairs`: observations, actions before `tanh`, and the latent of each action; `None` for samples from N(0, I).
    - `fitted`, `held_out`: the pairs that are fitted, and those that validate.

    The others are those of [`fit_decoder`][].

    **Returns:**

    The decoder, how it went, and how it went epoch by epoch.
    """
    latents, action_size = pairs[2], pairs[1].shape[1]
    num_validation = held_out.count
    num_batches = fitted.count // refinement.batch_size
    width = longest_axis(split_trainable(decoder)[0])
    optimiser = usually_promoting(optax.adam(refinement.learning_rate))  # pyright: ignore[reportArgumentType]
    validation_key, key = jax.random.split(key)

    # Everything is an index into the pairs, so that shuffling copies nothing.
    def draw(chosen: Int[Array, " pairs"], key: RandomKey) -> tuple[Array, Array | None, RandomKeys]:
        """One flat batch of rows: with an axis for the samples XLA puts transposes around every matrix product."""
        rows = jnp.repeat(chosen, refinement.num_noise_samples)
        loss_key, latent_key = jax.random.split(key)
        noise = jax.random.normal(latent_key, (rows.size, action_size)) if latents is None else None
        return rows, noise, jax.random.split(loss_key, rows.size)

    def pair_of(
        row: Int[Array, ""], noise: Float[Array, " action"] | None
    ) -> tuple[Float[Array, " observation"], Float[Array, " action"], Float[Array, " action"]]:
        """Observation, latent and action."""
        observation, action, own_latent = jax.tree.map(lambda leaf: leaf[row], pairs)
        return observation, own_latent if noise is None else noise, action

    def batch_step(carry: tuple[AbstractDecoder, PyTree], inputs: tuple) -> tuple[tuple, Float[Array, ""]]:
        decoder, optimiser_state = carry
        trainable, rest = split_trainable(decoder)

        def mean_loss(trainable: PyTree, drawn: tuple) -> tuple[Float[Array, ""], Float[Array, ""]]:
            decoder = eqx.combine(trainable, rest)
            loss = jnp.mean(jax.vmap(lambda row, noise, key: decoder.loss(*pair_of(row, noise), key))(*drawn))
            return loss, loss

        chosen, key = inputs
        drawn = draw(fitted.index(chosen), key)
        gradient, loss = mean_gradient(mean_loss, trainable, drawn, width)
        updates, optimiser_state = optimiser.update(gradient, optimiser_state)
        return (eqx.combine(optax.apply_updates(trainable, updates), rest), optimiser_state), loss

    def epoch(search: _Search) -> _Search:
        order_key, noise_key = jax.random.split(jax.random.fold_in(key, search.fit.num_epochs))
        order = shuffle(order_key, fitted.count)
        batches = order[: num_batches * refinement.batch_size].reshape(num_batches, refinement.batch_size)
        carry = (search.decoder, search.optimiser_state)
        carry, training_losses = jax.lax.scan(batch_step, carry, (batches, jax.random.split(noise_key, num_batches)))
        decoder, optimiser_state = carry
        loss = validation_loss(decoder)
        better = loss < search.fit.validation_loss
        number, training_loss = search.fit.num_epochs, jnp.mean(training_losses)
        return _Search(
            decoder,
            optimiser_state,
            optax.tree.where(better, decoder, search.best),
            Fit(
                training_loss,
                jnp.where(better, loss, search.fit.validation_loss),
                number + 1,
            ),
            FitCurve(
                search.curve.training_loss.at[number].set(training_loss),
                search.curve.validation_loss.at[number].set(loss),
            ),
            jnp.where(better, 0, search.stale + 1),
        )

    def validation_loss(decoder: AbstractDecoder) -> Float[Array, ""]:
        """The validation loss, one batch at a time, so that it needs no more memory than a gradient step."""
        count = -(-num_validation // refinement.batch_size)
        chosen = jnp.arange(count * -(-num_validation // count)).reshape(count, -1)

        def batch_loss(inputs: tuple[Int[Array, " batch"], RandomKey]) -> Float[Array, ""]:
            chosen, key = inputs
            mask = chosen < num_validation  # the last batch is padded
            drawn = draw(held_out.index(jnp.minimum(chosen, num_validation - 1)), key)
            losses = map_rows(lambda row: decoder.validation_loss(*pair_of(*row[:2]), row[2]), drawn, width)
            return jnp.sum(losses, where=jnp.repeat(mask, refinement.num_noise_samples))

        total = jnp.sum(jax.lax.map(batch_loss, (chosen, jax.random.split(validation_key, count))))
        return total / (num_validation * refinement.num_noise_samples)

    def continues(search: _Search) -> Bool[Array, ""]:
        return (search.fit.num_epochs < refinement.num_epochs) & (search.stale < refinement.patience)

    start = Fit(jnp.zeros((), jnp.float32), jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))
    unknown = jnp.full(refinement.num_epochs, jnp.nan, jnp.float32)
    search = _Search(
        decoder,
        optimiser.init(split_trainable(decoder)[0]),
        decoder,
        start,
        FitCurve(unknown, unknown),
        jnp.zeros((), jnp.int32),
    )
    search = jax.lax.while_loop(continues, epoch, search)
    return search.best, search.fit, search.curve
