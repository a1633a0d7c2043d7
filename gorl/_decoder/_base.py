"""What a decoder is."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from .._statistics import RunningStatistics
from .._types import RandomKey


class AbstractDecoder(eqx.Module):
    """A conditional generative model of actions: given an observation, it carries N(0, I) to the actions it was fitted
    to.

    Both methods are unbatched; `vmap` outside. The actions here are the ones before `tanh`.
    """

    @abc.abstractmethod
    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """The action that `latent` stands for at `observation`; deterministic."""

    @abc.abstractmethod
    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """How badly the model carries `latent` to `action` at `observation`.

        Whoever fits decides where latents come from: from N(0, I), whatever the action, in GoRL. `key` decides anything
        else that is random.
        """


class AbstractDecoderConfig(eqx.Module):
    """The hyperparameters of a kind of decoder. A new kind subclasses this and `AbstractDecoder` in a file."""

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
        """Checks what the declared range of each single field cannot say; raises `gorl.InputError`."""
