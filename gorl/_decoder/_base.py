"""The interface of decoders."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from .._statistics import RunningStatistics
from .._types import RandomKey


class AbstractDecoder(eqx.Module):
    """A conditional generative model of actions. Given an observation, it maps N(0, I) to the actions of its dataset.

    Both methods are unbatched; `vmap` outside. The actions here are the ones before `tanh`.
    """

    @abc.abstractmethod
    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """Maps a latent to an action; deterministic."""

    @abc.abstractmethod
    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The loss of mapping `latent` to `action` at `observation`.

        In GoRL the latent is sampled from N(0, I), independently of the action. `key` decides everything else that is
        random.
        """

    def validation_loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """What decides which epoch of a regression is best: the loss.

        A decoder whose targets move with its network overrides this, as its losses cannot be compared between epochs.
        """
        return self.loss(observation, latent, action, key)


class AbstractDecoderConfig(eqx.Module):
    """The hyperparameters of a kind of decoder. A new kind subclasses this and `AbstractDecoder` in one file."""

    @abc.abstractmethod
    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> AbstractDecoder:
        """A fresh decoder.

        **Arguments:**

        - `statistics`: those of the observations that it will be fitted to.
        - `action_size`: the length of actions, and of latents.
        - `key`: decides the initial weights.
        """

    @abc.abstractmethod
    def check(self) -> None:
        """Checks what the declared ranges of single fields cannot; raises `gorl.InputError`."""
