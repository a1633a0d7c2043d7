"""`gorl distill`: a finished run with a decoder that takes one pass of its network."""

import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import gorl

from ._process import as_json, command, plain_console
from ._run import Run, check_new, make_directory
from ._tables import new_table

_EPISODES = 64  # in which teacher and student are compared


def distill(run: Run, out: pathlib.Path, texts: Mapping[str, str], key: int) -> None:
    """Fits a decoder of one pass to what the decoder of each best policy does, and prints the returns of both.

    **Arguments:**

    - `run`: a finished run of a method with a decoder.
    - `out`: a new directory. It becomes a finished run, without a curve or a checkpoint, for the other commands.
    - `texts`: fields of the config to change, such as `{"decoder.width": "128"}`.
    - `key`: decides the data, the regression and the episodes of the comparison.
    """
    if not run.is_finished:
        raise gorl.InputError(
            f"{run.directory} is not finished: finish it first, with {command('gorl', 'resume', run.directory)}."
        )
    config = _config(run.config, texts)
    check_new(out, is_named=True)
    began = time.monotonic()
    policies, random_key = run.policies(), jax.random.key(key)
    students, fits, returns = [], [], []
    for index in range(run.seeds):
        fit_key, play_key = jax.random.split(jax.random.fold_in(random_key, index))
        teacher = gorl.of_seed(policies, index)
        student, fit = gorl.distill(config.env, teacher, config.decoder, fit_key, config.refinement)
        students.append(student)
        fits.append(float(fit.validation_loss))
        returns.append([_return(config.env, policy, play_key) for policy in (teacher, student)])
    teachers, ours = (
        dict(zip(map(str, run.seed_numbers), column, strict=True)) for column in zip(*returns, strict=True)
    )
    distilled = Run(make_directory(out, True), config, run.method, run.first_seed, run.seeds, run.checkpoint_interval)
    distilled.create()
    gorl.save_policy(distilled.policies_file, jax.tree.map(lambda *leaves: jnp.stack(leaves), *students), config)
    summary = run.summary() | {
        "best_policy_return": ours,
        "best_policy_return_mean": float(np.mean(list(ours.values()))),
        "episodes_per_seed": _EPISODES,
        "wall_seconds": round(time.monotonic() - began, 1),
        "distilled_from": str(run.directory),
        "teacher_return": teachers,
    }
    gorl.internal.write_whole(distilled.summary_file, as_json(summary))
    _show(distilled, teachers, ours, fits)


def _config(config: gorl.Config, texts: Mapping[str, str]) -> gorl.Config:
    """The config of a distilled run: a MeanFlow as large as the decoder of the run, and what a person changed."""
    size = {name: getattr(config.decoder, name) for name in ("width", "depth") if hasattr(config.decoder, name)}
    student = gorl.replace(config, {"decoder": gorl.MeanFlow(**size)})
    changes = {name: gorl.internal.parse(student, name, text) for name, text in texts.items()}
    for name in changes:
        if not name.startswith(("decoder.", "refinement.")):
            raise gorl.InputError(f"--set {name} is no part of a distillation: set fields of decoder or refinement.")
    student = gorl.replace(student, changes)
    student.check()
    return student


def _return(env: gorl.EnvConfig, policy: gorl.Policy, key: jax.Array) -> float:
    return float(np.mean(gorl.evaluate(env, policy, key, num_episodes=_EPISODES)))


def _show(run: Run, teachers: Mapping[str, float], ours: Mapping[str, float], fits: list[float]) -> None:
    title = f"return of {_EPISODES} fresh episodes, the same for both"
    table = new_table("seed", "teacher", "one pass", "change", "held-out error", title=title)
    for (seed, teacher), one_pass, loss in zip(teachers.items(), ours.values(), fits, strict=True):
        change = f"{(one_pass - teacher) / abs(teacher):+.1%}" if teacher else ""
        table.add_row(seed, f"{teacher:.1f}", f"{one_pass:.1f}", change, f"{loss:.2g}")
    console = plain_console()
    console.print(table)
    console.print(f"{run.directory} is a run for gorl eval, render and export", soft_wrap=True)
