"""How fast tasks are simulated on a CPU: by MuJoCo's own engine alone, by an environment of it, by MJX, by EnvPool.

Random actions in a jitted scan; and `gorl.rollout` with the flow of the task's preset. All in turns, as ratios.
"""

import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer

import gorl

from ._engine import engine_seconds
from ._random_actions import random_actions
from ._report import RESULTS, answer, compiled, num_cores, once, table, write

TASKS = ("CheetahRun", "FingerSpin", "HopperStand", "WalkerWalk", "FishSwim", "HumanoidRun")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def scanned(env: gorl.EpisodicEnv, num_envs: int, num_steps: int) -> tuple[Callable[..., Any], tuple, float]:
    """Random actions in a jitted scan: a compiled function, its arguments, and the seconds until it has run once."""
    keys = jax.random.split(jax.random.key(0), num_envs)
    starting, compiling = compiled(jax.vmap(env.start), keys)
    arguments = (starting(keys), jax.random.key(1))
    program, more = compiled(random_actions(env, num_envs, num_steps), *arguments)
    return program, arguments, compiling + more


def rolled_out(config: gorl.Config) -> tuple[Callable[..., Any], tuple, int, float]:
    """A rollout with the flow, under way: a compiled function, its arguments, its steps, and seconds of compiling."""
    learner = config.learner
    assert isinstance(learner, gorl.PPO)
    env = gorl.load_environment(config.env)
    training = env.in_training
    sizes = (env.observation_size, env.action_size)
    learner_key, decoder_key, noise_key, key = jax.random.split(jax.random.key(0), 4)
    noise = jax.random.normal(noise_key, (1000, env.observation_size))
    decoder = config.decoder.init(gorl.RunningStatistics.of(noise), env.action_size, decoder_key)
    encoder = learner.encoder(learner.init(*sizes, learner_key))
    policy = gorl.Policy(encoder, gorl.StagedDecoder(decoder, jnp.asarray(True)), *sizes)

    def act(
        policy: gorl.Policy, rollout_state: gorl.RolloutState, key: jax.Array
    ) -> tuple[gorl.RolloutState, gorl.Experience]:
        return gorl.rollout(training, policy, rollout_state, learner.num_unrolls, learner.unroll_length, key)

    rollout_state = gorl.RolloutState.empty(training, learner.num_envs)
    program, compiling = compiled(act, policy, rollout_state, key)
    # Twice: the first begins all episodes, for which the second draws new start states.
    for _ in range(2):
        rollout_state, _ = program(policy, rollout_state, key)
    steps = learner.num_unrolls * learner.unroll_length * learner.num_envs
    return program, (policy, rollout_state, key), steps, compiling


def envpool_seconds(task: str, num_envs: int, num_steps: int) -> float:
    """What EnvPool takes for as many steps, in a process of its own."""
    settings = {"task": task, "num_envs": num_envs, "num_steps": num_steps, "num_threads": num_cores()}
    command = [sys.executable, "-m", "benchmarks._peer_envpool", json.dumps(settings)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def measure(task: str, num_envs: int, num_steps: int, repeats: int, with_jax: bool, with_envpool: bool) -> dict:
    """Measures one task, in turns."""
    config = gorl.preset(task)
    by = {
        name: gorl.replace(config, {"env.implementation": name})
        for name in (("mujoco", "jax") if with_jax else ("mujoco",))
    }
    envs = {name: gorl.load_environment(of_name.env) for name, of_name in by.items()}
    # MJX gets fewer steps, as nobody has the time.
    steps = {"mujoco": num_steps, "jax": max(1, num_steps // 10)}
    scans = {name: scanned(of_name, num_envs, steps[name]) for name, of_name in envs.items()}
    rollouts = {name: rolled_out(of_name) for name, of_name in by.items()}
    rates: dict[str, list[float]] = {}
    # A first round, which is not counted, allocates what later ones find.
    for repetition in range(repeats + 1):
        round_: dict[str, float] = {
            "engine alone": num_envs * num_steps / engine_seconds(envs["mujoco"], num_envs, num_steps)
        }
        for name, (program, arguments, _) in scans.items():
            round_[f"scan, {name}"] = num_envs * steps[name] / once(program, *arguments)
        for name, (program, arguments, amount, _) in rollouts.items():
            round_[f"rollout, {name}"] = amount / once(program, *arguments)
        if with_envpool:
            round_["scan, EnvPool"] = num_envs * num_steps / envpool_seconds(task, num_envs, num_steps)
        if repetition:
            for name, rate in round_.items():
                rates.setdefault(name, []).append(rate)
    compiling = {f"scan, {name}": found[2] for name, found in scans.items()}
    compiling |= {f"rollout, {name}": found[3] for name, found in rollouts.items()}
    medians = {name: statistics.median(of_name) for name, of_name in rates.items()}
    ratios = {"scan over engine alone": medians["scan, mujoco"] / medians["engine alone"]}
    for kind in ("scan", "rollout"):
        if with_jax:
            ratios[f"{kind} over MJX"] = medians[f"{kind}, mujoco"] / medians[f"{kind}, jax"]
    if with_envpool:
        ratios["scan over EnvPool"] = medians["scan, mujoco"] / medians["scan, EnvPool"]
    return {"steps_per_second": rates, "medians": medians, "ratios": ratios, "compiling": compiling}


@app.command()
def main(
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; may be given several times.")] = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments side by side.")] = 512,
    num_steps: Annotated[int, typer.Option(min=1, help="Control steps of each in a scan.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="How often each is measured, in turns.")] = 5,
    with_jax: Annotated[bool, typer.Option("--jax/--no-jax", help="MJX as well, which compiles for minutes.")] = True,
    peers: Annotated[list[str] | None, typer.Option("--peer", help="envpool, if it is installed.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Where the results go.")] = RESULTS / "physics",
) -> None:
    """Measures how fast tasks are simulated."""
    for peer in peers or []:
        if peer != "envpool":
            raise gorl.InputError(f"--peer {peer}: give envpool, or leave it out.")
        if importlib.util.find_spec("envpool") is None:
            raise gorl.InputError("envpool is not installed: pip install envpool.")
    sizes = {"num_envs": num_envs, "num_steps": num_steps}
    for task in tasks or TASKS:
        found = measure(task, num_envs, num_steps, repeats, with_jax, bool(peers))
        write(out / f"{task}.json", {"task": task, **sizes, **found})
        names, compiling = list(found["medians"]), found["compiling"]
        table(
            task,
            {
                "": names,
                "steps per second": [f"{found['medians'][name]:,.0f}" for name in names],
                "compiling, s": [f"{compiling[name]:.1f}" if name in compiling else "" for name in names],
            },
            left=("",),
        )
        table(task, {name: [f"{ratio:.2f}"] for name, ratio in found["ratios"].items()})


if __name__ == "__main__":
    answer(app)
