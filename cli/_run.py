"""One run of `gorl train`: the loop over chunks, and what it leaves in the run's directory."""

import csv
import datetime
import io
import json
import os
import pathlib
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

import gorl

from ._plot import learning_curve
from ._progress import Progress
from ._show import summary


def run(config: gorl.Config, method: str, *, seeds: int, first_seed: int, directory: pathlib.Path | None) -> None:
    """Trains all seeds in one vmapped run, shows how it goes, and writes the results.

    **Arguments:**

    - `config`: what to train.
    - `method`: what it is called.
    - `seeds`: how many seeds.
    - `first_seed`: the keys are those of the seeds from this one on, so that each can be run again by itself.
    - `directory`: where the results go; `None` for a new directory in `runs/`.

    **Raises:**

    `gorl.InputError` for bad input, before anything is compiled or written.
    """
    if seeds < 1:
        raise gorl.InputError(f"--seeds must be at least 1, not {seeds}.")
    if not 0 <= first_seed <= 2**32 - seeds:
        raise gorl.InputError(f"--seed must be at least 0 and below 2^32, not {first_seed}.")
    config_text = config.to_json()
    directory = directory or _new_directory(config, method)
    _check_directory(directory)
    began = time.monotonic()
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(seeds, dtype=jnp.uint32))
    chunks = gorl.iterate(config, keys)  # checks the rest of the input
    directory.mkdir(parents=True, exist_ok=True)
    gorl.write_whole(directory / "config.json", config_text)

    rows: list[dict[str, float | int]] = []
    state = None
    with Progress(config, method, seeds) as progress:
        for chunk, state in chunks:
            jax.block_until_ready(state.position)
            progress.advance(chunk, state)
            if chunk.phase == gorl.Phase.EVALUATE and not chunk.is_final:
                rows += _rows(config, chunk, state, first_seed, time.monotonic() - began)
                gorl.write_whole(directory / "curve.csv", _table(rows))
    assert state is not None
    result = gorl.finish(config, state)
    gorl.save_policy(directory / "policies.eqx", result.policy, config)
    gorl.write_whole(directory / "curve.png", learning_curve(f"{method} on {config.env}", result.curve))
    wall_seconds = time.monotonic() - began
    gorl.write_whole(directory / "summary.json", _summary(result, method, first_seed, wall_seconds))
    summary(config, method, result, first_seed, wall_seconds, directory)


def _new_directory(config: gorl.Config, method: str) -> pathlib.Path:
    name = f"{config.env}-{method}".replace("/", "-").replace(":", "-")
    return pathlib.Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _check_directory(directory: pathlib.Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise gorl.InputError(f"--out {directory} is a file: give a directory.")
    if directory.exists() and any(directory.iterdir()):
        raise gorl.InputError(f"--out {directory} is already in use: give a new or an empty directory.")
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise gorl.InputError(
            f"--out {directory} cannot be written, because {existing} cannot: give another directory."
        )


def _rows(
    config: gorl.Config, chunk: gorl.Chunk, state: gorl.TrainState, first_seed: int, wall_seconds: float
) -> list[dict[str, float | int]]:
    """A row of `curve.csv` for each seed, of the evaluation that has just been made."""
    evaluation = int(chunk.evaluation)
    returns = np.asarray(state.returns[:, evaluation])
    return [
        {
            "seed": first_seed + index,
            "stage": int(chunk.stage),
            "env_steps": int(chunk.iterations) * config.steps_per_iteration,
            "wall_seconds": round(wall_seconds, 3),
            "return_mean": float(of_seed.mean()),
            "return_std": float(of_seed.std()),
            "return_min": float(of_seed.min()),
            "return_max": float(of_seed.max()),
            **{name: float(figures[index, evaluation]) for name, figures in state.metrics.items()},
        }
        for index, of_seed in enumerate(returns)
    ]


def _table(rows: list[dict[str, float | int]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _summary(result: gorl.Result, method: str, first_seed: int, wall_seconds: float) -> str:
    returns = np.asarray(result.returns)
    kept = {str(first_seed + index): float(of_seed.mean()) for index, of_seed in enumerate(returns)}
    versions = {name: version(name) for name in ("gorl", "jax", "equinox", "optax", "diffrax", "mujoco-mjx", "brax")}
    content = {
        "method": method,
        "kept_policy_return": kept,
        "kept_policy_return_mean": float(returns.mean()),
        "episodes_per_seed": returns.shape[1],
        "wall_seconds": round(wall_seconds, 1),
        "device": str(jax.devices()[0]),
        "versions": versions,
    }
    return json.dumps(content, indent=2) + "\n"
