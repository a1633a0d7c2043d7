"""One live episode on the host: who acts, what reaches into it, and how it keeps real time."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import gorl

PUSH_SECONDS = 0.2
_MOST_BEHIND = 0.25  # seconds that a player may lag behind before it gives up catching up


class Player:
    """An episode that is played an action at a time.

    Only one thread may use it at a time.

    **Arguments:**

    - `env`: the environment.
    - `policies`: the policies of all seeds; `None` for uniform actions.
    - `seed`: the index of the policy that acts first.
    - `key`: decides the episodes.
    - `spread`: see `gorl.internal.Reach`.

    **Attributes:**

    - `model`, `data`: MuJoCo's model of the scene, and its data in the present state.
    - `seconds`: the duration of an action.
    - `seed`, `spread`: who acts, and how; they can be set.
    - `commands`: the commands that can be given; `fixed`: the values that are.
    - `is_over`: whether the episode is over; `num_steps`: its actions so far; `total`: its return so far.
    - `episode`: its number; `last_return`: that of the episode before, `None` in the first.

    **Raises:**

    `gorl.InputError` for an environment that has no MuJoCo model.
    """

    def __init__(
        self, env: gorl.EpisodicEnv, policies: gorl.Policy | None, *, seed: int = 0, key: int = 0, spread: float = 0.0
    ):
        import mujoco

        scene = gorl.internal.scene(env.env.whole)
        self._mujoco: Any = mujoco
        self._env, self._policies, self._pose_of = env, policies, scene.pose
        self._key = jax.random.key(key)
        self.model, self.data = scene.model, self._mujoco.MjData(scene.model)
        self.seconds = scene.seconds * env.action_repeat
        self.seed, self.spread = seed, spread
        self.num_bodies, self.commands = gorl.internal.reachable(env)
        self.fixed: dict[str, float] = {}
        self.episode, self.last_return = -1, None
        self.restart()
        self._warm_up()

    def restart(self) -> None:
        """Starts the next episode."""
        if self.episode >= 0 and self.num_steps > 0:
            self.last_return: float | None = self.total
        self.episode += 1
        key = self._key if self.episode == 0 else jax.random.fold_in(self._key, self.episode)
        self._state, moment, self._keys = gorl.internal.start_live(self._env, self._pose_of, key)
        self.total, self.num_steps, self.is_over = 0.0, 0, False
        self._push, self._pull = (0, np.zeros((self.num_bodies, 6), np.float32)), None
        gorl.internal.show(self.model, self.data, moment)

    def step(self) -> None:
        """Takes one action, unless the episode is over."""
        if self.is_over:
            return
        self._state, moment = gorl.internal.step_live(
            self._env, self._pose_of, self._policies, self._state, self._keys, self._reach(self._force())
        )
        self.total += float(moment.reward)
        self.num_steps += 1
        self.is_over = bool(moment.done)
        gorl.internal.show(self.model, self.data, moment)

    def push(self, body: int, force: Float[np.ndarray, "3"]) -> None:
        """Lets a force in N act on the centre of mass of a body for [`PUSH_SECONDS`][]."""
        forces = np.zeros((self.num_bodies, 6), np.float32)
        forces[body, :3] = force
        self._push = max(1, round(PUSH_SECONDS / self.seconds)), forces

    def grab(self, body: int, point: Float[np.ndarray, "3"]) -> None:
        """Begins to pull a body at a point on it, given in the frame of the world."""
        rotation = self.data.xmat[body].reshape(3, 3)
        perturbation = self._mujoco.MjvPerturb()
        perturbation.select = body
        perturbation.active = int(self._mujoco.mjtPertBit.mjPERT_TRANSLATE)
        perturbation.localpos[:] = rotation.T @ (np.asarray(point) - self.data.xpos[body])
        # MuJoCo wants a camera, and takes the mass that is felt at the point from the model.
        seen = self._mujoco.MjvScene(self.model, maxgeom=1)
        self._mujoco.mjv_updateScene(
            self.model, self.data, self._mujoco.MjvOption(), None, self._mujoco.MjvCamera(), 0, seen
        )
        self._mujoco.mjv_initPerturb(self.model, self.data, seen, perturbation)
        self._pull = perturbation

    def pull(self, point: Float[np.ndarray, "3"]) -> None:
        """Pulls what is grabbed towards a point, by the spring of MuJoCo's own viewer."""
        if self._pull is not None:
            self._pull.refselpos[:] = point

    def release(self) -> None:
        """Lets go of what is grabbed."""
        self._pull = None

    @property
    def mass(self) -> float:
        """The mass of what can move, in kg."""
        return float(self.model.body_mass[self.model.body_weldid > 0].sum())

    def _force(self) -> Float[np.ndarray, "bodies 6"]:
        left, forces = self._push
        if left == 0 and self._pull is None:
            return np.zeros((self.num_bodies, 6), np.float32)
        self._push = max(0, left - 1), forces
        total = forces.copy() if left else np.zeros_like(forces)
        if self._pull is not None:
            self.data.xfrc_applied[:] = 0
            self._mujoco.mjv_applyPerturbForce(self.model, self.data, self._pull)
            total += self.data.xfrc_applied.astype(np.float32)
            self.data.xfrc_applied[:] = 0
        return total

    def _reach(self, force: Float[np.ndarray, "bodies 6"]) -> gorl.internal.Reach:
        # Arrays of numpy, which need no program of their own to come to a device.
        return gorl.internal.Reach(
            np.array(self.seed, np.int32),
            np.array(self.spread, np.float32),
            force,
            np.array([self.fixed.get(name, 0.0) for name in self.commands], np.float32),
            np.array([name in self.fixed for name in self.commands], bool),
        )

    def _warm_up(self) -> None:
        """Compiles the step, so that the first action is as fast as the others."""
        result = gorl.internal.step_live(
            self._env,
            self._pose_of,
            self._policies,
            self._state,
            self._keys,
            self._reach(np.zeros((self.num_bodies, 6), np.float32)),
        )
        jax.block_until_ready(result)


class Clock:
    """Decides when a player acts, so that it keeps real time times a speed.

    **Arguments:**

    - `seconds`: the duration of an action.
    - `now`: the present time in seconds.

    **Attributes:**

    - `speed`: seconds of the episode in a second.
    - `factor`: the same as it was in the last half second.
    """

    _WINDOW = 0.5

    def __init__(self, seconds: float, now: float):
        self.speed, self.factor = 1.0, 0.0
        self._seconds, self._due, self._played = seconds, 0.0, 0
        self._last = self._begin = now

    def is_due(self, now: float) -> bool:
        """Whether it is time for an action. What is far too late is left out."""
        most = max(self.speed * _MOST_BEHIND, self._seconds)
        self._due = min(self._due + self.speed * (now - self._last), most)
        self._last = now
        if now - self._begin >= self._WINDOW:
            self.factor = self._played * self._seconds / (now - self._begin)
            self._begin, self._played = now, 0
        return self._due >= self._seconds * (1 - 1e-6)

    def acted(self) -> None:
        """Records an action."""
        self._due -= self._seconds
        self._played += 1

    def wait(self) -> float:
        """Seconds until an action is due."""
        return max(0.0, self._seconds - self._due) / self.speed

    def rest(self, now: float) -> None:
        """Lets time pass without anything that is due."""
        self._due, self._played, self.factor = 0.0, 0, 0.0
        self._last = self._begin = now
