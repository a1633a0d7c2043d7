"""The built-in environment: a point in the plane and several equally good goals."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import RandomKey
from ._scene import Pose, Scene


class MultiGoalState(eqx.Module):
    """The position of the point (`obs`), and reward and termination of the last step."""

    obs: Float[Array, "2"]
    reward: Float[Array, ""]
    done: Float[Array, ""]


class MultiGoal(eqx.Module):
    """A point in the plane that can walk to any of several goals, all equally good.

    The goals stand evenly on the unit circle and episodes start near its centre, so that the best first action is
    multimodal: a Gaussian can commit to one goal only. Each step moves the point by a tenth of the action and pays
    `exp(-d² / 2w²)`, where `d` is the distance to the nearest goal and `w` the width of a goal; the most that an
    episode of 50 steps can bring is therefore a little over 40. The task is after the one of the reference.

    ??? cite "Reference"

        Haarnoja et al. (2017), *Reinforcement Learning with Deep Energy-Based Policies*, section 5.1.
    """

    num_goals: int = 4
    goal_width: float = 0.2
    episode_length: int = 50

    @property
    def observation_size(self) -> int:
        return 2

    @property
    def action_size(self) -> int:
        return 2

    @property
    def goals(self) -> Float[Array, "goals 2"]:
        """The positions of the goals."""
        angle = 2 * jnp.pi * jnp.arange(self.num_goals, dtype=jnp.float32) / self.num_goals
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def reset(self, key: RandomKey) -> MultiGoalState:
        """Starts an episode at a normal distance of 0.05 from the centre."""
        return MultiGoalState(0.05 * jax.random.normal(key, (2,)), jnp.zeros(()), jnp.zeros(()))

    def step(self, state: MultiGoalState, action: Float[Array, "2"]) -> MultiGoalState:
        """Moves the point by a tenth of `action`; the plane ends at ±1.5."""
        position = jnp.clip(state.obs + 0.1 * jnp.clip(action, -1, 1), -1.5, 1.5)
        squared_distance = jnp.min(jnp.sum((self.goals - position[None]) ** 2, axis=-1))
        reward = jnp.exp(-squared_distance / (2 * self.goal_width**2))
        return MultiGoalState(position, reward, jnp.zeros(()))


# Seen from above; the darker ground begins where the plane ends.
_WORLD = """
<mujoco>
  <visual><headlight ambient=".5 .5 .5" diffuse=".4 .4 .4" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="above" pos="0 0 6" fovy="31"/>
    <geom type="plane" size="9 9 .1" pos="0 0 -.01" rgba=".8 .8 .8 1"/>
    <geom type="plane" size="1.5 1.5 .1" rgba=".95 .95 .95 1"/>
    {goals}
    <body pos="0 0 .07">
      <joint type="slide" axis="1 0 0" range="-1.5 1.5"/>
      <joint type="slide" axis="0 1 0" range="-1.5 1.5"/>
      <geom size=".07" rgba="0 .45 .7 1"/>
    </body>
  </worldbody>
</mujoco>
"""


def scene(env: Any) -> Scene | None:
    """The scene of a [`MultiGoal`][]: a ball between discs; `None` for any other environment."""
    if not isinstance(env, MultiGoal):
        return None
    import mujoco

    goals = "".join(
        f'<geom type="cylinder" size="{env.goal_width} .005" pos="{x} {y} 0" rgba=".9 .62 0 1"/>'
        for x, y in env.goals.tolist()
    )
    # A step has no duration of its own; an eye can follow ten a second.
    return Scene(mujoco.MjModel.from_xml_string(_WORLD.format(goals=goals)), _pose, 0.1)  # pyright: ignore[reportAttributeAccessIssue]


def _pose(state: MultiGoalState) -> Pose:
    return {"qpos": state.obs}
