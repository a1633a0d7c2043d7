# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of GoRL
#
# The tour takes ten minutes to read and about two to run, on two CPU cores. It is for readers who know reinforcement
# learning and have not seen this library. You train a policy, look at it, compare two methods, and train on an
# environment of your own.
#
# This file is a Python script and a notebook at once. These two commands make the notebook, and any program for
# notebooks opens it:
#
# ```bash
# pip install "gorl[tour]"
# jupytext --to notebook tour.py
# ```
#
# It also runs as `python tour.py`. The pictures are saved in the directory `tour` either way.

# %%
import os

os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo draws without a display; it reads this when it is first imported

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from tqdm import tqdm

import gorl

STEPS = 400_000  # environment steps of each run
SEEDS = 3
PICTURES = pathlib.Path("tour")
PICTURES.mkdir(exist_ok=True)

# %% [markdown]
# ## Train
#
# `MultiGoal` is a small task that is built in. A point stands in the middle of four goals, all equally good. An action
# moves it. The best first action is not unique, and a Gaussian can represent only one of them.
#
# A `gorl.Config` says everything about a run but its random key. `gorl.preset` gives one that works, and `gorl.replace`
# and `gorl.reschedule` change it. The method `gorl-flow` trains a Gaussian encoder by PPO, and fits a decoder by flow
# matching. They alternate in stages: here there are two.

# %%
config = gorl.reschedule(gorl.preset("MultiGoal", method="gorl-flow"), total_steps=STEPS)
print(config)

# %% [markdown]
# `gorl.train(config, key)` is a pure function, physics and evaluation included. `jax.vmap` maps it over keys, so the
# seeds train side by side in one compiled program.
#
# The third argument is called after each evaluation of each seed. Here it moves a progress bar. The bar stands still
# for some seconds at first, while JAX compiles.

# %%
keys = jax.random.split(jax.random.key(0), SEEDS)


def train(config: gorl.Config) -> gorl.Result:
    """Trains one policy for each key."""
    with tqdm(total=sum(config.stage_iterations) * config.steps_per_iteration, unit=" steps", unit_scale=True) as bar:

        def show(record: gorl.EvaluationRecord) -> None:
            bar.update(min(int(record.env_steps), bar.total) - bar.n)
            bar.set_postfix_str(f"stage {int(record.stage)}, return {np.mean(record.returns):.1f}", refresh=False)

        return jax.block_until_ready(jax.vmap(lambda key: gorl.train(config, key, show))(keys))


flow = train(config)
print("Return of the best policy of each seed:", np.mean(flow.returns, axis=-1).round(1))

# %% [markdown]
# The point can earn a little over 40 in an episode. All results have a leading axis of seeds. `gorl.of_seed` takes one
# of them.
#
# ## Look
#
# The curve holds every evaluation. It falls a little where a stage begins: the fresh encoder samples from N(0, I), and
# the decoder turns these latents into what it has learned to imitate.

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for seed in range(SEEDS):
    curve = gorl.of_seed(flow, seed).curve
    axes.plot(curve.env_steps / 1000, curve.mean_return, label=f"seed {seed}")
axes.axvline(config.stage_steps[0] / 1000, color="grey", linestyle=":")
axes.set(xlabel="thousand environment steps", ylabel="return", title="gorl-flow on MultiGoal")
axes.legend()
figure.savefig(PICTURES / "curve.png")

# %% [markdown]
# A policy is a function of one observation and a key. It samples an action in `[-1, 1]`. `policy.mode` gives the action
# of the most likely latent. Both go through `jax.vmap` like any function of JAX.
#
# These are a thousand actions in the middle of the goals, for one observation. The encoder is Gaussian; the decoder
# gives the actions their shape. They all lead to one goal: the first stage had a Gaussian policy, which chose it, and
# nothing in this task rewards a second choice.

# %%
policy = gorl.of_seed(flow, 0).policy
middle = jnp.zeros(policy.observation_size)
draws = jax.random.split(jax.random.key(1), 1000)


def sample(policy: gorl.Policy) -> jax.Array:
    """Actions for the middle, one for each key."""
    return jax.vmap(policy, in_axes=(None, 0))(middle, draws)


actions = sample(policy)
print("The action of the most likely latent:", policy.mode(middle))

figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
axes.plot(*actions.T, ".", markersize=3, alpha=0.5)
axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), title="actions for one observation", aspect="equal")
figure.savefig(PICTURES / "actions.png")

# %% [markdown]
# `gorl.render` films episodes with MuJoCo's renderer. It raises `gorl.InputError` where there is nothing to draw with,
# and says what to install. The command `gorl render` films a run, and `gorl view` shows a policy live in the browser.

# %%
try:
    film = gorl.render(config.env, policy, jax.random.key(2), stochastic=True, height=180, width=240)
except gorl.InputError as error:
    print(error)
else:
    first, *rest = [Image.fromarray(frame) for frame in film.frames[0]]
    first.save(PICTURES / "film.gif", save_all=True, append_images=rest, duration=1000 / film.frames_per_second, loop=0)
    figure, columns = plt.subplots(1, 5, figsize=(10, 1.8), layout="constrained")
    for axes, index in zip(columns, np.linspace(0, len(film.frames[0]) // 2, 5).astype(int), strict=True):
        axes.imshow(film.frames[0, index])
        axes.set_title(f"frame {index}")
        axes.axis("off")
    figure.savefig(PICTURES / "film.png")

# %% [markdown]
# A policy is saved with its config, and loaded without the program that trained it.

# %%
gorl.save_policy(PICTURES / "policy.eqx", policy, config)
loaded = gorl.load_policy(PICTURES / "policy.eqx")
assert jnp.array_equal(loaded.mode(middle), policy.mode(middle))

# %% [markdown]
# ## Compare
#
# `ppo` is the usual Gaussian policy. It gets the same keys and the same environment steps. `gorl.methods()` lists the
# others.

# %%
ppo = train(gorl.reschedule(gorl.preset("MultiGoal", method="ppo"), total_steps=STEPS))


def interval(returns: np.ndarray) -> str:
    """The mean over the seeds, with the smallest and the largest."""
    return f"{returns.mean():.1f} [{returns.min():.1f}, {returns.max():.1f}]"


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for name, result in {"gorl-flow": flow, "ppo": ppo}.items():
    print(f"{name}: {interval(np.mean(result.returns, axis=-1))}")
    steps, returns = result.curve.env_steps[0] / 1000, np.asarray(result.curve.mean_return)
    (line,) = left.plot(steps, returns.mean(axis=0), label=name)
    left.fill_between(steps, returns.min(axis=0), returns.max(axis=0), color=line.get_color(), alpha=0.2)
    right.plot(*sample(gorl.of_seed(result, 0).policy).T, ".", markersize=3, alpha=0.5, label=name)
left.set(xlabel="thousand environment steps", ylabel="return", title=f"mean, smallest and largest of {SEEDS} seeds")
left.legend()
right.legend()
right.set(title="actions for one observation", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
figure.savefig(PICTURES / "comparison.png")

# %% [markdown]
# Three seeds cannot rank methods, and the intervals are only the smallest and the largest return. From ten seeds on,
# `gorl eval`, `gorl plot` and `gorl report` give the 95 % confidence interval of the mean. Both methods solve this
# task, which is too easy to tell them apart.
#
# ## An environment of your own
#
# An environment in JAX is an object with `reset` and `step`. Its states have an observation, a reward, and whether the
# episode has terminated. This one is a pendulum that has to swing up. Its motor is too weak to lift it at once.


# %%
class SwingState(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Swing:
    observation_size = 3
    action_size = 1
    episode_length = 200

    def reset(self, key: jax.Array) -> SwingState:
        angle = jax.random.uniform(key, minval=-jnp.pi, maxval=jnp.pi)
        return self.state(angle, jnp.zeros(()))

    def step(self, state: SwingState, action: jax.Array) -> SwingState:
        cosine, sine, velocity = state.obs
        velocity = 0.99 * velocity + 0.05 * (10 * sine + 5 * action[0])
        angle = jnp.arctan2(sine, cosine) + 0.05 * velocity
        return self.state(angle, velocity)

    def state(self, angle: jax.Array, velocity: jax.Array) -> SwingState:
        obs = jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity])
        return SwingState(obs, reward=jnp.cos(angle), done=jnp.zeros(()))


# %% [markdown]
# GoRL checks an environment before it compiles anything, and says what is wrong with it. It knows no preset for this
# one, and takes a cautious one for ten million steps. The task is easy, so smaller and faster updates learn it in a
# fraction of them. `gorl.play` gives every step of the episodes.

# %%
config = gorl.reschedule(
    gorl.preset(Swing(), method="ppo"),
    total_steps=STEPS // 2,
    changes={
        "learner.num_envs": 256,
        "learner.unroll_length": 16,
        "learner.num_epochs": 8,
        "learner.learning_rate": 2e-3,
    },
)
swing = train(config)
print("Return of the best policy of each seed:", np.mean(swing.returns, axis=-1).round(1))

episodes = gorl.play(config.env, gorl.of_seed(swing, 0).policy, jax.random.key(3), num_episodes=8)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(episodes.observation[..., 0].T)
axes.set(xlabel="step", ylabel="cosine of the angle", title="eight episodes; 1 is upright")
figure.savefig(PICTURES / "swing.png")

# %% [markdown]
# Saved as `my_env.py`, the class has a name, `my_env:Swing`. With the name it trains by `gorl train my_env:Swing`, and
# its config and its policy can be written to files.
#
# ## Where to go next
#
# The guides lie beside this file.
#
# - `gorl train MultiGoal` does all of this on the command line: curves, checkpoints, policies and figures go into a
#   directory. See [Runs](runs.md).
# - [Design](design.md) explains stages, encoders and decoders in ten minutes.
# - [Python](python.md) shows the rest of the library: a run as a loop, that Ctrl-C stops and that goes on bit for bit.
# - [Your own environment](environments.md) has the other ways: a MuJoCo model, and MuJoCo Playground's tasks.
# - [Your own decoder](decoders.md) and [your own method](learners.md) extend GoRL without a change to it.
