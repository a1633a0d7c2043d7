"""Observations in parts: which part the policy sees, and which critics see."""

from collections.abc import Mapping
from typing import NamedTuple

from .._errors import InputError, unknown_name
from ._base import EnvConfig

# The names of MuJoCo Playground.
_POLICY, _CRITIC = "state", "privileged_state"


class Parts(NamedTuple):
    """What of an observation the policy sees, and what critics see.

    **Attributes:**

    - `policy`, `critic`: names of parts; `None` for the policy where the observation is one vector, and for critics
        that see what the policy sees.
    - `observation_size`: the length of what the policy sees.
    - `critic_observation_size`: the length of what critics see; `None` for what the policy sees.
    """

    policy: str | None
    critic: str | None
    observation_size: int
    critic_observation_size: int | None


def chosen_parts(config: EnvConfig, sizes: int | Mapping[str, int]) -> Parts:
    """The parts of an observation that the policy and critics see.

    **Arguments:**

    - `config`: may choose them.
    - `sizes`: the length of the observation, or of each of its parts.

    **Raises:**

    `gorl.InputError` for a part that there is not, and where none is chosen and none has a usual name.
    """
    chosen = {
        f"env.{field}": part
        for field in ("policy_observation", "critic_observation")
        if (part := getattr(config, field)) is not None
    }
    if isinstance(sizes, int):
        for field, part in chosen.items():
            raise InputError(
                f"{field} = {part} chooses a part of the observation, and that of {config} is one vector: leave it out."
            )
        return Parts(None, None, sizes, None)
    for part in chosen.values():
        if part not in sizes:
            raise unknown_name(f"part of the observation of {config}", part, sizes)
    policy = config.policy_observation or (next(iter(sizes)) if len(sizes) == 1 else _POLICY)
    if policy not in sizes:
        raise InputError(
            f"the observation of {config} has the parts {', '.join(sizes)}, and none of them is called {_POLICY}: set "
            "env.policy_observation to the one that the policy sees."
        )
    critic = config.critic_observation or (_CRITIC if _CRITIC in sizes else policy)
    if critic == policy:
        return Parts(policy, None, sizes[policy], None)
    return Parts(policy, critic, sizes[policy], sizes[critic])
