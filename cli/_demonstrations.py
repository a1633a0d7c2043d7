"""`gorl collect` and `gorl fit`: demonstrations from a run, and a decoder from demonstrations."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import gorl

from ._data import Data, read_data
from ._figures import encode, loss_curve
from ._process import as_json, check_output, plain_console, plural, say, write_output
from ._run import Run, check_new, make_directory, versions
from ._tables import new_table
from ._train import table

# A refinement comes again and again, this once. Fitted to 100 episodes of CheetahRun whose actions were drawn, the
# preset's decoder returned 0.85 of what the demonstrator did (0.78 with latents drawn), this one 1.02 (0.96).
_REGRESSION = {"refinement.num_epochs": 200, "refinement.patience": 40, "refinement.learning_rate": 1e-3}
_WIDTH = 128
_EPISODES = 64  # in which a fitted decoder is tried


def collect(run: Run, out: pathlib.Path, *, episodes: int, stochastic: bool, seed: int | None, key: int) -> None:
    """Writes episodes of a best policy as demonstrations."""
    check_output(out, (".npz",))
    env, policy = run.config.env, run.policy(seed)
    played = gorl.play(env, policy, jax.random.key(key), num_episodes=episodes, stochastic=stochastic)
    observations, actions, rewards, lengths = map(
        np.asarray, (played.observation, played.action, played.reward, played.length)
    )
    is_step = np.arange(actions.shape[1]) < lengths[:, None]
    demonstrations = gorl.Demonstrations(observations[is_step], actions[is_step], lengths)
    returns = np.sum(rewards, axis=1)
    write_output(out, Data(str(out), demonstrations, returns, str(env)).encode())
    steps = plural(int(lengths.sum()), "step")
    say(f"{plural(episodes, 'episode')} with {steps} and a mean return of {returns.mean():.1f} are in {out}")


@dataclasses.dataclass(frozen=True)
class _Tried:
    """What a fitted policy returned: at latent zero, and by draws."""

    at_zero: np.ndarray
    drawn: np.ndarray


def fit(data: Data, config: gorl.Config, method: str, out: pathlib.Path, key: int) -> None:
    """Fits a decoder to demonstrations, tries it, and leaves it as a finished run.

    **Arguments:**

    - `data`: the demonstrations.
    - `config`: says which decoder, and of which environment.
    - `method`: the name of its method.
    - `out`: a new directory, for `gorl train --decoder` and for the commands that take a run.
    - `key`: decides the regression and the episodes.
    """
    check_new(out, is_named=True)
    began = time.monotonic()
    fit_key, play_key = jax.random.split(jax.random.key(key))
    lengths = data.demonstrations.episode_lengths
    say(f"fitting {plural(sum(lengths), 'step')} of {plural(len(lengths), 'episode')}")
    policy, fitted, curve = gorl.fit_demonstrations(config, data.demonstrations, fit_key)
    tried = _Tried(
        *(
            np.asarray(gorl.evaluate(config.env, policy, play_key, num_episodes=_EPISODES, stochastic=stochastic))
            for stochastic in (False, True)
        )
    )
    num_epochs = int(fitted.num_epochs)
    losses = {name: np.asarray(getattr(curve, name))[:num_epochs] for name in ("training_loss", "validation_loss")}
    rows = [
        {"epoch": epoch + 1, **{name: float(loss[epoch]) for name, loss in losses.items()}}
        for epoch in range(num_epochs)
    ]
    run = Run(make_directory(out, True), config, method, 0, 1, 0.0)
    run.create()
    gorl.internal.write_whole(out / "fit.csv", table(rows))
    title = f"{type(config.decoder).__name__} on {pathlib.Path(data.source).name}"
    gorl.internal.write_whole(out / "fit.png", encode(loss_curve(losses, title), ".png"))
    gorl.save_policy(run.policies_file, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], policy), config)
    gorl.internal.write_whole(run.summary_file, as_json(_summary(run, data, fitted, tried, time.monotonic() - began)))
    _show(run, data, fitted, tried)


def _summary(run: Run, data: Data, fitted: gorl.Fit, tried: _Tried, seconds: float) -> Mapping[str, object]:
    return {
        "method": run.method,
        "env_steps": 0,
        "best_policy_return": {"0": float(tried.at_zero.mean())},
        "best_policy_return_mean": float(tried.at_zero.mean()),
        "return_by_draws_mean": float(tried.drawn.mean()),
        "episodes_per_seed": _EPISODES,
        "demonstrator_return_mean": None if data.returns is None else float(data.returns.mean()),
        "fitted_to": data.source,
        "validation_loss": float(fitted.validation_loss),
        "num_epochs": int(fitted.num_epochs),
        "diverged_at": {},
        "divergence": {},
        "wall_seconds": round(seconds, 1),
        "device": str(jax.devices()[0]),
        "versions": versions(),
    }


def _show(run: Run, data: Data, fitted: gorl.Fit, tried: _Tried) -> None:
    shown = new_table("who acts", "episodes", "return", "of the demonstrator's", left=("who acts",))
    demonstrator = None if data.returns is None else float(data.returns.mean())
    rows = {"demonstrator": data.returns, "decoder at latent zero": tried.at_zero, "decoder by draws": tried.drawn}
    for who, returns in rows.items():
        if returns is None:
            continue
        share = f"{returns.mean() / demonstrator:.1%}" if demonstrator and demonstrator > 0 else ""
        shown.add_row(who, str(len(returns)), f"{returns.mean():.1f}", share)
    console = plain_console()
    console.print(shown)
    epochs = plural(int(fitted.num_epochs), "epoch")
    console.print(f"held-out loss {float(fitted.validation_loss):.3g} after {epochs}, in fit.csv and fit.png")
    console.print(
        f"gorl train {run.config.env} --decoder {run.directory} begins with it; {run.directory} is also a run for gorl "
        "eval, render, inspect and export",
        soft_wrap=True,
    )


def read_and_configure(
    source: str, env: str | None, scale: str, method: str, texts: Mapping[str, str]
) -> tuple[Data, gorl.Config]:
    """The demonstrations, and the config that a decoder is fitted by: a preset with a wider network and more epochs."""
    data = read_data(source)
    name = env or data.environment
    if name is None:
        raise gorl.InputError(f"{source} does not say of which environment it is: name it with --env.")
    preset = gorl.replace(gorl.preset(name, scale, method), {"starts_fitted": False, **_REGRESSION})
    if hasattr(preset.decoder, "width"):
        preset = gorl.replace(preset, {"decoder.width": _WIDTH})
    changes = {field: gorl.internal.parse(preset, field, text) for field, text in texts.items()}
    for field in changes:
        if not field.startswith(("decoder", "refinement", "env.")):
            raise gorl.InputError(f"--set {field} decides nothing here: set fields of decoder, refinement or env.")
    return data, gorl.replace(preset, changes)
