"""What the tests of rendering share: who can draw here, and films made where MuJoCo can still be told how.

MuJoCo decides how it draws as it is imported, and in the process that runs the tests another file may have imported it
already. So this file is also a program, which makes all the films and prints what the tests want to know of them.
"""

import functools
import json
import subprocess
import sys
import unittest.mock

import pytest
from quick import quick_environment

PACKAGES = "drawing takes EGL (apt install libegl1 libgl1-mesa-dri) or OSMesa (apt install libosmesa6)"


def drawing_process(*command):
    """Runs Python where MuJoCo can draw, and returns what it prints. Skips the test where MuJoCo cannot."""
    probe = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8)"
    for name in ("egl", "osmesa"):
        environment = quick_environment(MUJOCO_GL=name)
        if subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True).returncode == 0:
            break
    else:
        pytest.skip(PACKAGES)
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main():
    """Makes the films."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import mujoco
    import numpy as np
    from brax.io import image
    from jaxtyping import install_import_hook

    with install_import_hook("gorl", "beartype.beartype"):
        import gorl
    from gorl._env import load_environment

    class SlideState(eqx.Module):
        obs: jax.Array
        reward: jax.Array
        done: jax.Array
        data: eqx.Module

    class Data(eqx.Module):
        qpos: jax.Array
        mocap_pos: jax.Array
        mocap_quat: jax.Array

    class Slide(eqx.Module):
        """A box that slides by a stride in each step, for three steps or nine, as the start state says."""

        mj_model: mujoco.MjModel
        observation_size: int = 2
        action_size: int = 1
        dt: float = 0.04
        blows_up: bool = False
        stride: float = 0.1

        def state(self, limit, count):
            at = self.stride * count
            at = jnp.where(count >= limit, jnp.nan, at) if self.blows_up else at
            data = Data(at[None], jnp.stack([0.0, 0.3 - at, 1.0])[None], jnp.array([[1.0, 0.0, 0.0, 0.0]]))
            return SlideState(jnp.stack([limit, count]), count, (count >= limit).astype(jnp.float32), data)

        def reset(self, key):
            return self.state(jnp.where(jax.random.bernoulli(key), 3.0, 9.0), jnp.zeros(()))

        def step(self, state, action):
            return self.state(state.obs[0], state.obs[1] + 1)

    world = """
        <mujoco><worldbody>
          <light pos="0 0 3"/>
          <camera name="front" pos="0 -4 1" xyaxes="1 0 0 0 .2 1"/>
          <camera name="above" pos="0 0 4"/>
          <body><joint type="slide" axis="1 0 0" {range}/><geom type="box" size=".3 .2 .2" rgba="1 0 0 1"/></body>
          <body mocap="true"><geom size=".1" rgba="0 1 0 1"/></body>
        </worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(world.format(range='range="-9 9"'))
    without_end = mujoco.MjModel.from_xml_string(world.format(range=""))

    key = jax.random.key(3)

    @functools.cache
    def drawn(count, camera):
        """What the box looks like after so many steps, by MuJoCo alone."""
        data = mujoco.MjData(model)
        data.qpos[0], data.mocap_pos[0] = 0.1 * count, [0.0, 0.3 - 0.1 * count, 1.0]
        mujoco.mj_forward(model, data)
        with mujoco.Renderer(model, 48, 64) as renderer:
            renderer.update_scene(data, camera)
            return renderer.render()

    @functools.cache
    @eqx.filter_jit
    def policy(observation_size, action_size):
        learner = gorl.PPO(policy_width=8, policy_depth=1, value_width=1, value_depth=1)
        encoder = learner.encoder(learner.init(observation_size, action_size, jax.random.key(0)))
        noisy = jax.tree.map(lambda weights: weights + jax.random.normal(key, weights.shape), encoder.network)
        encoder = eqx.tree_at(lambda encoder: encoder.network, encoder, noisy)
        return gorl.Policy(encoder, gorl.IdentityDecoder(), observation_size, action_size)

    def differences(frames, expected):
        return [
            int(np.abs(frame.astype(int) - other.astype(int)).max())
            for frame, other in zip(frames, expected, strict=True)
        ]

    start_key, _ = jax.random.split(key)
    start_keys = jax.random.split(start_key, 4)
    figures = {}

    # The environment whose every frame is known.
    slide = gorl.EnvConfig(Slide(model), episode_length=20)
    options = {"num_episodes": 4, "height": 48, "width": 64}
    calls = []
    film = gorl.render(slide, policy(2, 1), key, on_frame=lambda *drawn: calls.append(drawn), **options)
    figures["calls"] = calls
    limits = np.where(jax.vmap(jax.random.bernoulli)(start_keys), 3, 9)
    assert set(limits) == {3, 9}

    def slides(film, camera="front", every=1, last=100):
        """How far the frames of each episode are from what they should be."""
        times = every * np.arange(film.frames.shape[1])
        return [
            max(differences(frames, [drawn(min(time, limit, last), camera) for time in times]))
            for frames, limit in zip(film.frames, limits, strict=True)
        ]

    def facts(film, **expected):
        return {
            "shape": film.frames.shape,
            "num_frames": film.num_frames.tolist(),
            "frames_per_second": film.frames_per_second,
            "returns": film.returns.tolist(),
            "difference": slides(film, **expected),
        }

    figures["limits"] = limits.tolist()
    figures["moves"] = min(
        differences([drawn(n, "front") for n in range(9)], [drawn(n, "front") for n in range(1, 10)])
    )
    figures["slide"] = facts(film)
    film = gorl.render(slide, policy(2, 1), key, frames_per_second=12.5, camera="above", **options)
    figures["slower"] = facts(film, camera="above", every=2)
    film = gorl.render(slide, policy(2, 1), key, num_steps=2, **options)
    figures["two_steps"] = facts(film, last=2)
    repeated = gorl.EnvConfig(Slide(model), episode_length=20, action_repeat=2)
    film = gorl.render(repeated, policy(2, 1), key, **options)
    figures["repeated"] = facts(film, every=2)
    model_size = (model.vis.global_.offheight, model.vis.global_.offwidth)
    film = gorl.render(slide, policy(2, 1), key, num_episodes=1, num_steps=1, height=700, width=900)
    figures["large"] = {
        "shape": film.frames.shape,
        "leaves_model": model_size == (model.vis.global_.offheight, model.vis.global_.offwidth),
    }
    blown_up = gorl.EnvConfig(Slide(model, blows_up=True), episode_length=20)
    film = gorl.render(blown_up, policy(2, 1), key, **options)
    limits = limits - 1
    figures["blown_up"] = facts(film)

    # The free camera: what it sees of the box, the only red thing, and of the ball, the only green one.
    def seen(frames, colour):
        """Of each frame, the middle of what has a colour, how far it extends and how far it stays from the edges."""
        others = np.delete(frames, colour, axis=-1)
        mask = (frames[..., colour] > 30) & (others.max(axis=-1) < 0.3 * frames[..., colour])
        height, width = mask.shape[-2:]
        facts = {"middle": [], "extent": [], "margin": []}
        for picture in mask.reshape(-1, height, width):
            rows, columns = np.nonzero(picture)
            low, high = np.array([rows.min(), columns.min()]), np.array([rows.max(), columns.max()])
            facts["middle"].append(((low + high) / 2 - (np.array([height, width]) - 1) / 2).tolist())
            facts["extent"].append(((high - low + 1) / [height, width]).tolist())
            facts["margin"].append(min(*low, *(np.array([height, width]) - 1 - high)).item())
        return facts

    running = gorl.EnvConfig(Slide(without_end, stride=5.0), episode_length=20)
    for name, size in {"wide": (48, 64), "tall": (64, 32)}.items():
        sized = options | {"height": size[0], "width": size[1]}
        film = gorl.render(slide, policy(2, 1), key, camera="free", **sized)
        figures[f"free_{name}"] = {"box": seen(film.frames, 0), "ball": seen(film.frames, 1)}
        film = gorl.render(running, policy(2, 1), key, **sized)
        figures[f"follows_{name}"] = seen(film.frames, 0)

    # The built-in environment: where the ball is.
    film = gorl.render("MultiGoal", policy(2, 2), key, num_episodes=4, stochastic=True, height=240, width=240)
    figures["evaluated"] = gorl.evaluate("MultiGoal", policy(2, 2), key, num_episodes=4, stochastic=True).tolist()
    blue = (film.frames[..., 2] > 1.5 * film.frames[..., 0]) & (film.frames[..., 2] > 60)
    rows, columns = np.indices(blue.shape[2:])
    centre = [[float(np.mean(where[mask])) for where in (columns, rows)] for mask in blue[:, 0]]
    starts = jax.vmap(gorl.MultiGoal().reset)(start_keys).obs
    figures["multigoal"] = {
        "shape": film.frames.shape,
        "frames_per_second": film.frames_per_second,
        "returns": film.returns.tolist(),
        "centre": centre,
        "starts": np.asarray(starts).tolist(),
        "pixels": blue.sum(axis=(2, 3)).min().item(),
    }

    # What MuJoCo Playground and Brax draw themselves, of the same start state and from the same place.
    def against(config, size, draw):
        film = gorl.render(config, policy(*size), key, num_episodes=2, height=120, width=160, frames_per_second=1000.0)
        episodes = load_environment(config)
        start = jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(episodes.start))(jax.random.split(start_key, 2)))
        count = film.num_frames[1]
        return {
            "frames_per_second": film.frames_per_second,
            "difference": differences(film.frames[1][:1], [draw(episodes.env.whole, start.state)]),
            "changes": differences(film.frames[1][: count - 1], film.frames[1][1:count]),
        }

    def draw_playground(env, state):
        return env.render([state], 120, 160, camera="fixed")[0]

    def draw_brax(env, state):
        return image.render_array(env.sys, state.pipeline_state, 120, 160, camera=cameras[-1])

    cameras = []
    update_scene = mujoco.Renderer.update_scene

    def remember(renderer, data, camera):
        cameras.append(camera)
        update_scene(renderer, data, camera)

    config = gorl.EnvConfig("ReacherEasy", episode_length=4, implementation="jax")
    figures["playground"] = against(config, (6, 2), draw_playground)
    with unittest.mock.patch.object(mujoco.Renderer, "update_scene", remember):
        figures["brax"] = against(gorl.EnvConfig("brax/inverted_pendulum", episode_length=4), (4, 1), draw_brax)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
