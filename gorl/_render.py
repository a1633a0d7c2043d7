"""Films of a policy in whole episodes."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from ._env import EnvConfig, Environment, EpisodeState, EpisodicEnv, Pose, scene
from ._errors import InputError, unknown_name
from ._evaluation import check_counts, load_for, play_episodes
from ._policy import Policy
from ._types import RandomKey

_FREE = "free"  # the name of the camera that no model defines


class Film(eqx.Module):
    """Pictures of parallel episodes.

    **Attributes:**

    - `frames`: red, green and blue. An episode that is done stands still until all are.
    - `num_frames`: frames of each episode until it stands still.
    - `frames_per_second`: the rate at which the film runs in real time.
    - `returns`: the sum of the rewards of each episode.
    """

    frames: UInt8[np.ndarray, "episodes time height width 3"]
    num_frames: Int[np.ndarray, " episodes"]
    frames_per_second: float
    returns: Float[np.ndarray, " episodes"]


def render(
    env: EnvConfig | Environment | str,
    policy: Policy,
    key: RandomKey,
    *,
    num_episodes: int = 1,
    stochastic: bool = False,
    num_steps: int | None = None,
    height: int = 360,
    width: int = 480,
    camera: str | None = None,
    frames_per_second: float = 30.0,
    on_frame: Callable[[int, int], None] | None = None,
) -> Film:
    """Draws new episodes with MuJoCo's own renderer.

    The episodes are those that `gorl.evaluate` plays for the same environment, policy, key, `num_episodes` and
    `stochastic`.

    MuJoCo decides how it draws when it is first imported. On a machine without a display, the environment variable
    `MUJOCO_GL` must be `egl` or `osmesa` by then (`gorl render` sees to that by itself).

    **Arguments:**

    - `env`: the environment: `config.env`, a name, or an environment itself. One of your own can be drawn if it has the
        `mj_model` and the `dt` of MuJoCo Playground's environments, and its states have their `data`.
    - `policy`: who acts.
    - `key`: decides the start states, and the latents if they are drawn.
    - `num_episodes`: how many episodes, all side by side.
    - `stochastic`: draw latents from the encoder, rather than taking its mode.
    - `num_steps`: the number of actions after which an episode is left; `None` to stay until its end.
    - `height`, `width`: of a frame, in pixels.
    - `camera`: a camera of the model; or `"free"` for one that is so far away that everything that moves stays in the
        picture, and that follows a robot which can run away. `None` for the model's first, which must follow such a
        robot, or the free one if it has none.
    - `frames_per_second`: draw as many control steps as this allows, the same number of them apart.
    - `on_frame`: called after each frame with the number of those that are drawn, and of all.

    **Returns:**

    The film. It begins with the start states, and ends with the last state of the longest episode.

    **Raises:**

    `gorl.InputError` if the environment is unknown or has no MuJoCo model, the policy was made for one of other sizes,
    the camera is unknown, a number is less than 1, or MuJoCo finds nothing to draw with.
    """
    check_counts(num_episodes=num_episodes, num_steps=num_steps, height=height, width=width)
    if not frames_per_second > 0:
        raise InputError(f"frames_per_second must be above 0, not {frames_per_second}.")
    loaded = load_for(env, policy)
    seen = scene(loaded.env.whole)
    camera_index = _camera_index(seen.model, camera)
    # The renderer comes first: a missing one is found at once, and playing takes a while.
    with _renderer(seen.model, height, width) as renderer:
        played = _poses(loaded, seen.pose, policy, key, num_episodes, num_steps, stochastic)
        poses, lengths, returns = jax.tree.map(np.asarray, played)
        seconds = seen.seconds * loaded.action_repeat
        # Rounding must not change whole multiples: 1 / (0.02 * 50) is 1.
        every = max(1, math.ceil(1 / (seconds * frames_per_second) - 1e-6))
        num_frames = 1 + -(-lengths // every)
        paths = []
        for episode, (length, count) in enumerate(zip(lengths, num_frames, strict=True)):
            steps = np.minimum(every * np.arange(count), length)
            paths.append({name: values[steps, episode] for name, values in poses.items()})
        view = _FreeView(renderer.model, paths, width / height) if camera_index < 0 else None
        frames = np.empty((num_episodes, num_frames.max(), height, width, 3), np.uint8)
        num_drawn = 0
        for pictures, path, count in zip(frames, paths, num_frames, strict=True):
            for picture, data in zip(pictures, _along(renderer.model, path), strict=False):
                renderer.update_scene(data, camera_index if view is None else view.camera(data))
                renderer.render(out=picture)
                num_drawn += 1
                if on_frame is not None:
                    on_frame(num_drawn, int(num_frames.sum()))
            pictures[count:] = pictures[count - 1]
    return Film(frames, num_frames, 1 / (seconds * every), returns)


@eqx.filter_jit
def _poses(
    env: EpisodicEnv,
    pose_of: Callable[[PyTree], Pose],
    policy: Policy,
    key: RandomKey,
    num_episodes: int,
    num_steps: int | None,
    stochastic: bool,
) -> tuple[PyTree[Float[Array, "time episodes ..."]], Int[Array, " episodes"], Float[Array, " episodes"]]:
    """The pose before the first action and after each; the number of actions of each episode; and its return."""

    def see(before: EpisodeState, action: Array, reward: Array) -> Pose:
        return pose_of(before.state)

    played = play_episodes(env, policy, key, num_episodes, num_steps, stochastic, see)
    last = jax.vmap(pose_of)(played.last.state)
    poses = jax.tree.map(lambda before, last: jnp.concatenate([before, last[None]]), played.seen, last)
    return poses, played.length, played.returns


def _along(model: Any, path: dict[str, Float[np.ndarray, "time ..."]]) -> Iterator[Any]:
    """MuJoCo's data at each pose of a path. A simulation that blew up stays at its last finite pose."""
    import mujoco

    data = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
    for index in range(len(path["qpos"])):
        if all(np.isfinite(values[index]).all() for values in path.values()):
            for name, values in path.items():
                getattr(data, name)[:] = values[index]
        mujoco.mj_fwdPosition(model, data)  # pyright: ignore[reportAttributeAccessIssue]
        yield data


class _FreeView:
    """A camera in the direction that the model says, so far away that what moves stays in the picture.

    **Arguments:**

    - `model`: MuJoCo's model.
    - `paths`: the poses of all episodes, which share the distance.
    - `aspect`: the width of a picture over its height.
    """

    def __init__(self, model: Any, paths: list[dict[str, Float[np.ndarray, "time ..."]]], aspect: float):
        import mujoco

        self._camera = mujoco.MjvCamera()  # pyright: ignore[reportAttributeAccessIssue]
        mujoco.mjv_defaultFreeCamera(model, self._camera)  # pyright: ignore[reportAttributeAccessIssue]
        self._root = runaway(model)
        moves = (model.body_weldid > 0) | (model.body_mocapid >= 0)
        # Other objects, such as a ball, may be anywhere.
        drawn = moves if self._root is None else model.body_rootid == self._root
        geoms = drawn[model.geom_bodyid]
        self._offset = self._camera.lookat.copy()
        if not geoms.any():
            return
        places = np.stack(
            [data.geom_xpos[geoms] - self._origin(data) for path in paths for data in _along(model, path)]
        )
        radii = model.geom_rbound[geoms, None]
        self._offset = ((places - radii).min((0, 1)) + (places + radii).max((0, 1))) / 2
        radius = np.max(np.linalg.norm(places - self._offset, axis=-1, keepdims=True) + radii)
        half_angle = math.radians(model.vis.global_.fovy) / 2
        self._camera.distance = radius / math.sin(min(half_angle, math.atan(aspect * math.tan(half_angle))))

    def camera(self, data: Any) -> Any:
        """The camera, which looks at what moves."""
        self._camera.lookat[:] = self._origin(data) + self._offset
        return self._camera

    def _origin(self, data: Any) -> Float[np.ndarray, "3"]:
        return np.zeros(3) if self._root is None else data.subtree_com[self._root]


def _renderer(model: Any, height: int, width: int) -> Any:
    import mujoco

    model = copy.copy(model)  # so that the caller's does not change
    model.vis.global_.offheight = max(height, model.vis.global_.offheight)
    model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
    try:
        return mujoco.Renderer(model, height, width)
    except (AttributeError, ImportError, RuntimeError, mujoco.FatalError) as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "MuJoCo finds no OpenGL to draw with: before anything imports mujoco, set the environment variable "
            "MUJOCO_GL to egl (in Debian, apt install libegl1 libgl1-mesa-dri) or osmesa (apt install libosmesa6)."
        ) from error


def _camera_index(model: Any, name: str | None) -> int:
    """The index of a camera; the free one is -1."""
    import mujoco

    names = [model.camera(index).name for index in range(model.ncam)]
    if name is None:
        following = (mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)  # pyright: ignore[reportAttributeAccessIssue]
        may_be_first = np.isin(model.cam_mode, following) | (runaway(model) is None)
        return int(np.argmax(may_be_first)) if may_be_first.any() else -1
    if name in names:
        return names.index(name)
    if name == _FREE:
        return -1
    raise unknown_name("camera", name, {*filter(None, names), _FREE})


def runaway(model: Any) -> int | None:
    """The root body of a robot that moves freely; `None` if it is fixed."""
    import mujoco

    if model.njnt == 0:
        return None
    root = model.jnt_bodyid[0]
    kinds = model.jnt_type[model.jnt_bodyid == root]
    is_limited = model.jnt_limited[model.jnt_bodyid == root].astype(bool)
    is_free = kinds == mujoco.mjtJoint.mjJNT_FREE  # pyright: ignore[reportAttributeAccessIssue]
    slides = kinds == mujoco.mjtJoint.mjJNT_SLIDE  # pyright: ignore[reportAttributeAccessIssue]
    return int(model.body_rootid[root]) if np.any(is_free | (slides & ~is_limited)) else None
