"""What an episode asks of a robot, such as a velocity: commands, which are drawn anew from time to time."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import InputError, unknown_name
from .._types import RandomKey


@dataclasses.dataclass(frozen=True)
class Command:
    """A number that a task asks for.

    **Arguments:**

    - `low`, `high`: it is drawn uniformly between them.
    - `unit`: such as `"m/s"`, for whoever reads it.
    - `zero_probability`: how often it is 0 instead, so that standing still is learned as well.

    **Raises:**

    `gorl.InputError` for a range that is upside down, and for a probability that is none.
    """

    low: float
    high: float
    unit: str = ""
    zero_probability: float = 0.0

    def __post_init__(self):
        if not self.low <= self.high:
            raise InputError(f"a command cannot lie between low = {self.low:g} and high = {self.high:g}: swap them.")
        if not 0 <= self.zero_probability <= 1:
            raise InputError(f"zero_probability = {self.zero_probability:g} is no probability: choose 0 to 1.")

    def draw(self, key: RandomKey) -> Float[Array, ""]:
        """A value."""
        zero_key, value_key = jax.random.split(key)
        value = jax.random.uniform(value_key, minval=self.low, maxval=self.high)
        return jnp.where(jax.random.bernoulli(zero_key, self.zero_probability), 0.0, value)


def parse_commands(text: str, commands: Mapping[str, Command], task: str) -> dict[str, float]:
    """Values for some commands of a task, as `"forward=1.0 turn=0"` gives them.

    **Raises:**

    `gorl.InputError` for an unknown command, for what is no number, and for a number out of the command's range.
    """
    values = {}
    for part in text.replace(",", " ").split():
        name, _, number = part.partition("=")
        if name not in commands:
            raise unknown_name(f"command of {task}", name, commands)
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"the command {part!r} gives no number: write {name}=0.5.") from None
        command = commands[name]
        if not (command.low <= value <= command.high or (value == 0 and command.zero_probability > 0)):
            raise InputError(
                f"the command {part} is out of range: {name} goes from {command.low:g} to {command.high:g} "
                f"{command.unit}".rstrip()
                + "."
            )
        values[name] = value
    return values
