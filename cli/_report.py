"""`gorl report`: runs as one page that opens without a network."""

import base64
import datetime
import functools
import json
import math
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import gorl

from ._figures import COLOURS, action_axis, actions_along
from ._plot import run_labels
from ._process import check_output, check_packages, say, write_output
from ._progress import finite_mean
from ._render import encode
from ._run import NO_METRICS, RUN, Run, damaged, read_description, restore

PACKAGES = ("plotly", "jinja2")
_SHOWN = 8  # runs whose curves are shown before a person asks for more
_ACTED = 4  # runs whose policies act for the page, which takes seconds for each
_FILM = {"num_steps": 400, "width": 400, "height": 300, "frames_per_second": 15.0}
_PLANNED = "The run has no policy yet. Its film and its actions are shown when it is finished."


def check_report(path: pathlib.Path) -> None:
    """Checks that [`report`][] can make and write such a file."""
    check_packages("gorl report", "report", PACKAGES)
    check_output(path, (".html",))


def report(runs: Sequence[Run], path: pathlib.Path, settings: Mapping[pathlib.Path, str] | None = None) -> None:
    """Makes a page about runs, finished or not, and writes it to a file.

    **Arguments:**

    - `runs`: the runs.
    - `path`: the file.
    - `settings`: the setting of each run that a sweep trained, by its directory.
    """
    check_report(path)
    content = page(runs, settings=settings).encode()
    write_output(path, content)
    print(f"{path}, {len(content) / 1e6:.1f} MB")


def write_page(run: Run, *, is_training: bool = False, is_quick: bool = False) -> None:
    """Writes the page about a run to its directory.

    **Arguments:**

    - `run`: the run.
    - `is_training`: the page says so, and loads itself again.
    - `is_quick`: no policy acts for it, and no checkpoint is read.
    """
    gorl.internal.write_whole(run.report_file, page([run], is_training=is_training, is_quick=is_quick))


def page(
    runs: Sequence[Run],
    *,
    settings: Mapping[pathlib.Path, str] | None = None,
    is_training: bool = False,
    is_quick: bool = False,
) -> str:
    """The text of the page. The arguments are those of [`report`][] and [`write_page`][]."""
    settings = settings or {}
    labels = run_labels(runs, settings)
    shown = [_about(run, label, is_training, is_quick) for run, label in zip(runs, labels, strict=True)]
    if len(runs) > 1:
        shown.sort(key=_rank, reverse=True)
    if not is_quick:
        for about in shown[:_ACTED]:
            about |= _acting(about["run"])
        for about in shown[_ACTED:]:
            about["note"] = f"The page has the films and the actions of the best {_ACTED} runs only."
    return _template().render(
        title=_title(runs),
        runs=shown,
        settings=bool(settings),
        fields=list(_differing([about["run"].config for about in shown]).items()) if len(runs) > 1 else [],
        is_training=is_training,
        made=_now(),
        machine=f"{platform.machine()}, {platform.system()} {platform.release()}",
        data=[_drawn(about, index < _SHOWN) for index, about in enumerate(shown)],
        colours=COLOURS[:-1],
        plotly=_plotly(),
    )


# --- What is said about a run. ---


def _about(run: Run, label: str, is_training: bool, is_quick: bool) -> dict[str, Any]:
    rows = run.curve() if run.curve_file.exists() else []
    summary = run.summary() if run.summary_file.exists() else {}
    curve = _curve(run, rows)
    done = curve["steps"][-1] / run.env_steps if curve["steps"] else 0.0
    try:
        returns = {str(seed): summary.get("best_policy_return", {}).get(str(seed)) for seed in run.seed_numbers}
        values = np.array([np.nan if value is None else value for value in returns.values()], np.float64)
        last = np.array([values[-1] for values in curve["seeds"].get("return_mean", [])], np.float64)
        facts = {name: summary.get(name) for name in ("wall_seconds", "episodes_per_seed", "device")}
        diverged = {seed: f"{int(at):,}" for seed, at in summary.get("diverged_at", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise damaged(run.summary_file) from error
    seconds = facts["wall_seconds"] or (max(curve["wall"], default=0.0) or None)
    preset, preset_name = _preset(run)
    return {
        "run": run,
        "label": label,
        "env": str(run.config.env),
        "state": "finished" if run.is_finished else "training" if is_training else "not finished",
        "done": done,
        "seconds": _duration(seconds) if seconds else None,
        "episodes": facts["episodes_per_seed"],
        "device": facts["device"],
        "returns": returns,
        "result": _interval(values),
        "last": {str(seed): value for seed, value in zip(run.seed_numbers, last.tolist(), strict=False)},
        "last_result": _interval(last),
        "diverged": diverged,
        "stages": _stages(run, curve, None if is_quick else _fits(run)),
        "curve": curve,
        "changed": _changed(run.config, preset) if preset is not None else [],
        "preset": preset_name,
        "config": _flat(run.config),
        "versions": read_description(run.directory, RUN)["versions"],
        "note": _PLANNED,
    }


def _curve(run: Run, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """`curve.csv` by columns: each metric of each seed, and the mean with its interval."""
    columns = [name for name in (rows[0] if rows else {}) if name not in NO_METRICS]
    of_seeds: dict[int, list[Mapping[str, str]]] = {seed: [] for seed in run.seed_numbers}
    try:
        for row in rows:
            of_seeds[int(row["seed"])].append(row)
        first = of_seeds[run.first_seed]
        steps, stages = [int(row["env_steps"]) for row in first], [int(row["stage"]) for row in first]
        # A person may leave this column out; the curve does not depend on it.
        wall = [float(row["wall_seconds"]) for row in first if row.get("wall_seconds")]
        metrics = {
            name: np.array([[float(row[name]) for row in of_seed] for of_seed in of_seeds.values()], np.float64)
            for name in columns
        }
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(run.curve_file) from error
    if run.curve_file.exists() and "return_mean" not in metrics:
        raise damaged(run.curve_file)
    intervals = {name: gorl.internal.interval(values, axis=0) for name, values in metrics.items()}
    return {
        "steps": steps,
        "stage": stages,
        "wall": wall,
        "seeds": {name: values.tolist() for name, values in metrics.items()},
        "mean": {name: found.mean.tolist() for name, found in intervals.items()},
        "low": {name: found.low.tolist() for name, found in intervals.items()},
        "high": {name: found.high.tolist() for name, found in intervals.items()},
        "band": next((found.name for found in intervals.values()), ""),
    }


def _stages(run: Run, curve: Mapping[str, Any], fits: Any) -> list[dict[str, Any]]:
    """A row for each stage: its returns, and how its decoder was fitted."""
    config, found = run.config, []
    stages, steps = np.array(curve["stage"]), curve["steps"]
    means = np.array(curve["mean"].get("return_mean", []))
    best_before = None
    for stage in range(config.num_stages):
        row: dict[str, Any] = {"stage": stage, "planned": config.stage_iterations[stage] * config.steps_per_iteration}
        here = np.flatnonzero(stages == stage)
        if here.size:
            best = float(np.nanmax(means[here], initial=-np.inf))
            row |= {"done": steps[here[-1]] - steps[here[0]], "first": float(means[here[0]]), "best": best}
            row["kept"] = row["first"] / best_before if best_before and best_before > 0 else None
            best_before = best
        if fits is not None and stage < config.num_stages - 1 and np.all(np.asarray(fits.num_epochs)[:, stage] > 0):
            row |= {
                "training": finite_mean(np.asarray(fits.training_loss)[:, stage]),
                "validation": finite_mean(np.asarray(fits.validation_loss)[:, stage]),
                "epochs": float(np.mean(np.asarray(fits.num_epochs)[:, stage])),
            }
        row["refined"] = stage < config.num_stages - 1
        found.append(row)
    return found


def _fits(run: Run) -> Any:
    """How each refinement went, from the newest checkpoint; `None` if there is none, or nothing was to be refined."""
    if run.config.num_stages == 1:
        return None
    restored = restore([run], [run.config])
    return None if restored is None else restored[0].fits


def _acting(run: Run) -> dict[str, Any]:
    """The film and the actions of the best policy, or why there are none."""
    if not run.policies_file.exists():
        return {"note": _PLANNED}
    seed = run.best_seed()
    policy = run.policy(seed)
    found: dict[str, Any] = {"acts": seed, "note": ""}
    try:
        found["actions"] = actions_along(run.config.env, policy, jax.random.key(0))
        found["action_axis"] = action_axis(found["actions"])
    except gorl.InputError as error:
        found["no_actions"] = str(error)
    try:
        found["film"] = _film(run, policy)
    except gorl.InputError as error:
        found["no_film"] = str(error)
    return found


def _film(run: Run, policy: gorl.Policy) -> dict[str, Any]:
    """An .mp4; where ffmpeg cannot make one, a .gif."""
    film = gorl.render(run.config.env, policy, jax.random.key(0), **_FILM)
    try:
        content, kind = encode(film, ".mp4"), "video/mp4"
    except gorl.InputError as error:
        say(f"the film is a .gif: {error}")
        content, kind = encode(film, ".gif"), "image/gif"
    return {
        "source": f"data:{kind};base64,{base64.b64encode(content).decode()}",
        "is_video": kind == "video/mp4",
        "seconds": (film.frames.shape[1] - 1) / film.frames_per_second,
        "return": float(film.returns[0]),
    }


# --- Configs. ---


def _flat(config: gorl.Config) -> dict[str, str]:
    """The fields of a config by dotted name."""

    def go_through(group: Mapping[str, Any], prefix: str) -> dict[str, str]:
        found = {}
        for name, value in group.items():
            if isinstance(value, dict):
                found |= go_through(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value if isinstance(value, str) else json.dumps(value)
        return found

    return go_through(json.loads(config.to_json()), "")


def _changed(config: gorl.Config, preset: gorl.Config) -> list[tuple[str, str, str]]:
    """The fields that differ, with their value and that of the preset."""
    return [(name, value, before) for name, (value, before) in _differing([config, preset]).items()]


def _differing(configs: Sequence[gorl.Config]) -> dict[str, tuple[str, ...]]:
    flat = [_flat(config) for config in configs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: tuple(fields.get(name, "–") for fields in flat) for name in names}
    return {name: of_all for name, of_all in values.items() if len(set(of_all)) > 1}


def _preset(run: Run) -> tuple[gorl.Config | None, str]:
    """The preset nearest to the config of a run, and its name. A run does not say which scale it began with."""
    found = []
    for scale in ("laptop", "paper"):
        try:
            preset = gorl.preset(run.config.env.name, scale, run.method)
            found.append((len(_changed(run.config, preset)), scale, preset))
        except gorl.InputError:  # this environment or this method has no preset of this scale
            continue
    if not found:
        return None, ""
    _, scale, preset = min(found, key=lambda one: one[0])
    return preset, scale


# --- Words and numbers. ---


def _title(runs: Sequence[Run]) -> str:
    methods, envs = (sorted(names) for names in ({run.method for run in runs}, {str(run.config.env) for run in runs}))
    if len(methods) > 3 or len(envs) > 3:
        return f"{len(runs)} runs"
    return f"{', '.join(methods)} on {', '.join(envs)}"


def _rank(about: Mapping[str, Any]) -> float:
    found = about["result"] or about["last_result"]
    return found["mean"] if found else -math.inf


def _interval(values: np.ndarray) -> dict[str, Any] | None:
    """The mean with its interval; `None` without a finite value."""
    found = gorl.internal.interval(values) if values.size else None
    if found is None or not np.isfinite(found.mean):
        return None
    return {"mean": float(found.mean), "ends": found.ends if np.isfinite(found.low) else "", "name": found.name}


def _drawn(about: Mapping[str, Any], is_shown: bool) -> dict[str, Any]:
    """What the page draws of a run."""
    run, curve = about["run"], about["curve"]
    return _rounded(
        {
            "label": about["label"],
            "seed_numbers": list(run.seed_numbers),
            "shown": is_shown,
            "returns": list(about["returns"].values() if about["result"] else about["last"].values()),
            "actions": [
                {
                    "step": here.step,
                    "words": here.words.replace("\n", ", "),
                    "grid": here.grid[::2].tolist(),
                    "density": here.density[::2].tolist(),
                    "normal": here.normal[::2].tolist(),
                }
                for here in about.get("actions", ())
            ],
            "action_axis": about.get("action_axis", ""),
            **curve,
        }
    )


def _rounded(content: Any) -> Any:
    """Plain data with six digits of each number, which no screen shows more of. NaN becomes `null` as in JSON."""
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


# --- The template and plotly. ---


@functools.cache
def _template() -> Any:
    import jinja2

    # It escapes every value that it is given, but for plotly's program.
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    environment.policies["json.dumps_kwargs"] = {}  # the columns of a curve in their order
    return environment.get_template("_report.html")


@functools.cache
def _plotly() -> str:
    """plotly's program, which no value of a run is part of."""
    import plotly.offline

    # In an HTML page nothing else ends a script.
    return re.sub("</(?=script)", r"<\\/", plotly.offline.get_plotlyjs(), flags=re.IGNORECASE)
