"""`gorl eval`: the returns of the policies of a run, and how certain they are."""

import equinox as eqx
import jax
import numpy as np

import gorl

from ._process import as_json as to_json, plain_console
from ._run import Run
from ._tables import new_table


def evaluate(
    run: Run,
    *,
    env: gorl.EnvConfig,
    episodes: int,
    stochastic: bool,
    seed: int | None,
    key: int,
    as_json: bool,
) -> None:
    """Plays fresh episodes with the best policies of a run and prints their returns.

    **Arguments:**

    - `run`: the run.
    - `env`: the environment, which may be another than that of the run.
    - `episodes`: the number of episodes of each policy.
    - `stochastic`: sample latents from the encoder instead of taking its mode.
    - `seed`: the seed whose policy plays; `None` for all seeds.
    - `key`: decides the episodes. All policies play from the same start states.
    - `as_json`: print a JSON object instead of a table.
    """
    seeds, chosen = _chosen(run, episodes, seed)
    returns, terms = _played(env, chosen, key, episodes, stochastic)
    overall = _overall(returns)
    if as_json:
        print(_as_json(run, seeds, returns, overall, terms, stochastic, key), end="")
    else:
        _show(run, seeds, returns, overall, stochastic)
        _show_terms(seeds, terms)


def evaluate_over(
    vary: str,
    run: Run,
    *,
    env: gorl.EnvConfig,
    episodes: int,
    stochastic: bool,
    seed: int | None,
    key: int,
    as_json: bool,
) -> None:
    """Prints the returns over values of one randomisation: `"friction=0.3:1.2:7"`. Else as `evaluate`.

    The other fields of the model are nominal, unless `env` randomises them.
    """
    name, values = _grid(vary)
    seeds, chosen = _chosen(run, episodes, seed)
    base = env.randomization or "nominal"
    envs = [gorl.replace(env, {"randomization": f"{base} {name}={value:g}"}) for value in values]
    for changed in envs:  # all of them are refused before one is played
        gorl.load_environment(changed)
    returns = np.array([_played(changed, chosen, key, episodes, stochastic)[0] for changed in envs])
    means = returns.mean(axis=2)
    overall = [_overall(of_value) for of_value in returns]
    if as_json:
        rows = [
            {
                name: float(value),
                **_interval(of_all),
                "seeds": dict(zip(map(str, seeds), map(float, of_seeds), strict=True)),
            }
            for value, of_all, of_seeds in zip(values, overall, means, strict=True)
        ]
        print(to_json({"env": str(env), "method": run.method, "episodes_per_seed": episodes, "rows": rows}), end="")
        return
    title = f"{run.method} on {run.config.env}: mean return of {episodes} episodes for each seed and value"
    interval = gorl.internal.interval(np.array(overall[0])).name
    table = new_table(name, "mean", interval, *(f"seed {number}" for number in seeds), title=title)
    for value, of_all, of_seeds in zip(values, overall, means, strict=True):
        found = gorl.internal.interval(of_all)
        table.add_row(f"{value:g}", f"{found.mean:.1f}", found.ends, *(f"{mean:.1f}" for mean in of_seeds))
    plain_console().print(table)


def _overall(returns: np.ndarray) -> np.ndarray:
    """What the interval of all is taken over: the means of the seeds, or the episodes of a single one."""
    # The mean over seeds varies from seed to seed. More episodes of one policy say nothing about that.
    return returns.mean(axis=1) if len(returns) > 1 else returns[0]


def _grid(text: str) -> tuple[str, np.ndarray]:
    """The name and the values of `NAME=LOW:HIGH:COUNT`."""
    name, _, numbers = text.partition("=")
    try:
        low, high, count = numbers.split(":")
        return name, np.linspace(float(low), float(high), int(count))
    except ValueError:
        raise gorl.InputError(f"--vary {text} is no grid: write it as friction=0.3:1.2:7.") from None


def _chosen(run: Run, episodes: int, seed: int | None) -> tuple[list[int], gorl.Policy]:
    """The numbers of the seeds that play, and their policies."""
    if episodes < 1:
        raise gorl.InputError(f"--episodes must be at least 1, not {episodes}.")
    seeds = list(run.seed_numbers) if seed is None else [seed]
    indices = np.array([run.index(number) for number in seeds])
    return seeds, jax.tree.map(lambda leaf: leaf[indices], run.policies())


def _played(
    env: gorl.EnvConfig, policies: gorl.Policy, key: int, episodes: int, stochastic: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The returns of every seed and episode, and the terms of the environment."""
    played = _returns(env, policies, jax.random.key(key), episodes, stochastic)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), played)


@eqx.filter_jit
def _returns(
    env: gorl.EnvConfig, policies: gorl.Policy, key: jax.Array, episodes: int, stochastic: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    def of_one(policy: gorl.Policy) -> tuple[jax.Array, dict[str, jax.Array]]:
        return gorl.internal.evaluate_with_terms(env, policy, key, num_episodes=episodes, stochastic=stochastic)

    return eqx.filter_vmap(of_one)(policies)


def _show(run: Run, seeds: list[int], returns: np.ndarray, overall: np.ndarray, stochastic: bool) -> None:
    how = "sampled" if stochastic else "at the mode"
    name = gorl.internal.interval(returns, axis=1).name
    table = new_table(
        *("seed", "mean", name, "std", "lowest", "highest"),
        title=f"{run.method} on {run.config.env}: return of {returns.shape[1]} fresh episodes each, latents {how}",
    )
    for seed, of_seed in zip(seeds, returns, strict=True):
        table.add_row(str(seed), *_metrics(of_seed), f"{of_seed.min():.1f}", f"{of_seed.max():.1f}")
    if len(seeds) > 1:
        table.add_section()
        table.add_row("all", *_metrics(overall), f"{returns.min():.1f}", f"{returns.max():.1f}")
    console = plain_console()
    console.print(table)
    if len(seeds) > 1:
        of_all = gorl.internal.interval(overall).name
        console.print(f"all: over the means of the seeds; the {of_all} of them")


def _show_terms(seeds: list[int], terms: dict[str, np.ndarray]) -> None:
    """Prints the mean over episodes of what the environment reports."""
    if not terms:
        return
    title = "means over episodes; of measure/, over their steps"
    table = new_table("", *(f"seed {seed}" for seed in seeds), title=title, left=("",))
    for name, of_seeds in terms.items():
        table.add_row(name, *(f"{mean:.3g}" for mean in of_seeds.mean(axis=1)))
    plain_console().print(table)


def _metrics(values: np.ndarray) -> tuple[str, str, str]:
    found = gorl.internal.interval(values)
    std = np.std(values, ddof=1) if values.size > 1 else np.nan
    return f"{found.mean:.1f}", found.ends, f"{std:.1f}"


def _as_json(
    run: Run,
    seeds: list[int],
    returns: np.ndarray,
    overall: np.ndarray,
    terms: dict[str, np.ndarray],
    stochastic: bool,
    key: int,
) -> str:
    content = {
        "env": str(run.config.env),
        "method": run.method,
        "stochastic": stochastic,
        "key": key,
        "episodes_per_seed": returns.shape[1],
        "overall": _interval(overall),
        "seeds": {
            str(seed): {
                **_interval(of_seed),
                "returns": [float(value) for value in of_seed],
                "terms": {name: float(of_seeds[index].mean()) for name, of_seeds in terms.items()},
            }
            for index, (seed, of_seed) in enumerate(zip(seeds, returns, strict=True))
        },
    }
    return to_json(content)


def _interval(values: np.ndarray) -> dict[str, float | str]:
    found = gorl.internal.interval(values)
    return {"mean": float(found.mean), "low": float(found.low), "high": float(found.high), "low_and_high": found.name}
