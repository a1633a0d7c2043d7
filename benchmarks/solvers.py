"""What a flow decoder costs with each solver and number of steps, and how far its actions are from the exact ones.

Exact means 256 steps of Tsit5. Results are left after each row.
"""

import dataclasses
import pathlib
import statistics
from typing import Annotated, Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
import numpy as np
import typer

import gorl

from ._measure import in_turns, once
from ._report import PALETTE, RESULTS, Out, answer, benchmark, console, png, table, write

REPEATS = 11
app = benchmark("solvers")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A solver, with its number of equal steps or the tolerance that it adapts them to."""

    solver: str
    num_steps: int = 10
    tolerance: float | None = None

    @property
    def line(self) -> str:
        """The line of the picture that it is a point of."""
        return self.solver if self.tolerance is None else f"{self.solver}, adaptive"

    @property
    def setting(self) -> str:
        """Which point of the line it is."""
        return str(self.num_steps) if self.tolerance is None else f"{self.tolerance:.0e}"

    def of(self, decoder: gorl.FlowDecoder) -> gorl.FlowDecoder:
        """The decoder with this solver."""
        config = gorl.FlowMatching(
            width=1, depth=1, solver=self.solver, num_steps=self.num_steps, rtol=self.tolerance, atol=self.tolerance
        )
        like = config.init(decoder.statistics, 1, jax.random.key(0))
        return dataclasses.replace(decoder, integrator=like.integrator)


FINE = Variant("Tsit5", 256)
BASELINE = Variant("Euler", 10)
VARIANTS = (
    *(Variant("Euler", steps) for steps in (1, 2, 3, 4, 5, 8, 10, 15, 20)),
    *(Variant("Heun", steps) for steps in (1, 2, 4, 8)),
    *(Variant("Midpoint", steps) for steps in (1, 2, 4, 8)),
    *(Variant("Tsit5", steps) for steps in (1, 2, 4)),
    *(Variant("Tsit5", tolerance=tolerance) for tolerance in (1e-2, 1e-3, 1e-4)),
)


def loaded(path: pathlib.Path, task: str, seeds: int) -> list[gorl.Policy]:
    """The policies of the first seeds of a run; refuses a run of fewer seeds, or without a flow."""
    policies = gorl.load_policy(path, env=task)
    flow_decoder(policies)
    shape = jnp.shape(cast(gorl.StagedDecoder, policies.decoder).fitted)
    policies = policies if shape else jax.tree.map(lambda leaf: leaf[None], policies)
    if seeds > (number := sum(shape) or 1):
        raise gorl.InputError(f"{path} holds policies of no more than {number} seeds: give --seeds {number}.")
    return [gorl.of_seed(policies, seed) for seed in range(seeds)]


def flow_decoder(policy: gorl.Policy) -> gorl.FlowDecoder:
    """The flow decoder of a policy, or of several; refuses a policy that has none, or one that is not fitted."""
    staged = policy.decoder
    if not isinstance(staged, gorl.StagedDecoder):
        raise gorl.InputError("this policy has no stages: give one that gorl.train made.")
    if not isinstance(staged.decoder, gorl.FlowDecoder):
        kind = type(staged.decoder).__name__
        raise gorl.InputError(f"this policy has a {kind} and no flow decoder: give one of the method gorl-flow.")
    if not jnp.all(staged.fitted):
        raise gorl.InputError("the decoder of this policy has not been fitted: train for two stages or more.")
    return staged.decoder


def pairs(env: gorl.EnvConfig, policy: gorl.Policy, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Observations from episodes of the policy, and a latent from N(0, I) for each."""
    play_key, choice_key, latent_key = jax.random.split(key, 3)
    played = gorl.play(env, policy, play_key, num_episodes=16, stochastic=True)
    is_seen = np.arange(played.observation.shape[1]) < np.asarray(played.length)[:, None]
    seen = played.observation[is_seen]
    observations = jax.random.choice(choice_key, seen, (count,), replace=len(seen) < count)
    return observations, jax.random.normal(latent_key, (count, policy.action_size))


@eqx.filter_jit
def actions(decoder: gorl.FlowDecoder, observations: jax.Array, latents: jax.Array) -> jax.Array:
    """The actions of a batch of pairs."""
    return jnp.tanh(jax.vmap(decoder.decode)(observations, latents))


def velocity_evaluations(decoder: gorl.FlowDecoder, observations: jax.Array, latents: jax.Array) -> float:
    """How often a solve runs the velocity network: counted, the mean over pairs."""
    calls = []

    def counting(inputs: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return decoder.velocity.network(inputs)

    counted = eqx.tree_at(lambda d: d.velocity.network, decoder, counting)
    # One solve after the other: in a batch, all run until the last has arrived.
    jax.block_until_ready(eqx.filter_jit(jax.lax.map)(lambda pair: counted.decode(*pair), (observations, latents)))
    jax.effects_barrier()
    return len(calls) / len(observations)


class Comparison:
    """What all variants are compared on: pairs of observation and latent, and the same episodes for each."""

    def __init__(self, env: gorl.EnvConfig, policies: list[gorl.Policy], num_pairs: int, num_episodes: int):
        self.env, self.policies, self.num_episodes = env, policies, num_episodes
        self.decoders = [flow_decoder(policy) for policy in policies]
        pair_key, self.episode_key = jax.random.split(jax.random.key(1))
        self.pairs = [pairs(env, policy, num_pairs, pair_key) for policy in policies]
        self.exact, self.exact_returns = self._actions(FINE), self._returns(FINE)

    def _actions(self, variant: Variant) -> np.ndarray:
        every = zip(self.decoders, self.pairs, strict=True)
        return np.stack([actions(variant.of(decoder), *batch) for decoder, batch in every])

    def _returns(self, variant: Variant) -> np.ndarray:
        """The return of every episode of every policy."""
        returns = []
        for seed, (policy, decoder) in enumerate(zip(self.policies, self.decoders, strict=True)):
            acting = eqx.tree_at(lambda p: p.decoder.decoder, policy, variant.of(decoder))
            key = jax.random.fold_in(self.episode_key, seed)
            returns.append(gorl.evaluate(self.env, acting, key, num_episodes=self.num_episodes))
        return np.concatenate(returns).astype(np.float64)

    def error(self, variant: Variant) -> float:
        """The root mean square of the difference from the exact actions, over pairs and their components."""
        return float(np.sqrt(np.mean((self._actions(variant) - self.exact) ** 2)))

    def cost(self, variant: Variant) -> tuple[float, float]:
        """The seconds of a batch, and their ratio to those of the baseline, timed in turns."""
        decoders = {"this": variant.of(self.decoders[0]), "baseline": BASELINE.of(self.decoders[0])}
        runs = {name: lambda of=of: once(actions, of, *self.pairs[0]) for name, of in decoders.items()}
        in_turns(runs, 1)  # compiles
        times = in_turns(runs, REPEATS)
        mine, baseline = (statistics.median(times[name]) for name in runs)
        return mine, mine / baseline

    def change(self, variant: Variant) -> gorl.internal.Interval:
        """The change of the return from exact actions to these, over all episodes of these policies."""
        return gorl.internal.interval(self._returns(variant) - self.exact_returns)

    def row(self, variant: Variant) -> dict[str, Any]:
        """All that is measured of a variant."""
        (seconds, ratio), change = self.cost(variant), self.change(variant)
        return {
            "solver": variant.solver,
            "num_steps": variant.num_steps if variant.tolerance is None else None,
            "tolerance": variant.tolerance,
            "line": variant.line,
            "setting": variant.setting,
            "evaluations": velocity_evaluations(variant.of(self.decoders[0]), *(some[:64] for some in self.pairs[0])),
            "seconds": seconds,
            "ratio_to_euler_10": ratio,
            "error": self.error(variant),
            "return_change": float(change.mean),
            "return_change_95": [float(change.low), float(change.high)],
        }


def figure(task: str, rows: list[dict[str, Any]]) -> bytes:
    """Error against cost as a PNG file: a line for each solver, a point for each row."""
    picture = matplotlib.figure.Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = picture.subplots()
    for line, colour, marker in zip(dict.fromkeys(row["line"] for row in rows), PALETTE, "os^DvP*X", strict=False):
        points = [(row["ratio_to_euler_10"], row["error"], row["setting"]) for row in rows if row["line"] == line]
        cost, error, _ = zip(*points, strict=True)
        axes.plot(cost, error, label=line, color=colour, marker=marker, markersize=5, linewidth=1.5)
        for x, y, setting in points:
            axes.annotate(setting, (x, y), (4, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("time of a batch of actions over that of ten Euler steps")
    axes.set_ylabel("error of an action in [-1, 1], root mean square")
    axes.set_title(f"{task}: each point with its number of steps or its tolerance", loc="left", fontsize=11)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(picture)


@app.command()
def main(
    task: Annotated[str, typer.Option(help="Where the policy acts.")] = "PointMass",
    seeds: Annotated[int, typer.Option(min=1, help="Policies: trained here, or the first ones of the run.")] = 1,
    run: Annotated[
        pathlib.Path | None,
        typer.Option("--run", "--policy", help="A run of gorl train, or a file of gorl.save_policy, to train nothing."),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Environment steps to train for; the preset's by default.")] = None,
    num_pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of observation and latent.")] = 2048,
    # Of fewer than ten episodes there would be no confidence interval.
    num_episodes: Annotated[int, typer.Option("--episodes", min=10, help="Episodes of each policy.")] = 128,
    solvers: Annotated[list[str] | None, typer.Option("--solver", help="One of them; all by default.")] = None,
    out: Out = RESULTS / "solvers",
) -> None:
    """Compares solvers and step counts on a trained flow decoder."""
    names = {variant.solver for variant in VARIANTS}
    for solver in solvers or []:
        if solver not in names:
            raise gorl.internal.unknown_name("solver", solver, names)
    try:
        total = None if steps is None else gorl.internal.whole_number(steps)
    except ValueError as error:
        raise gorl.InputError(f"--steps must be a whole number such as 2e5, not {steps!r}.") from error
    config = gorl.reschedule(gorl.preset(task), total_steps=total)
    if run is None:
        result = jax.vmap(gorl.train, in_axes=(None, 0))(config, jax.random.split(jax.random.key(0), seeds))
        policies = [gorl.of_seed(result.policy, seed) for seed in range(seeds)]
    else:
        policies = loaded(run, task, seeds)
    comparison = Comparison(config.env, policies, num_pairs, num_episodes)
    content = {
        "task": task,
        "seeds": seeds,
        "policies": "trained here" if run is None else str(run),
        "config": config.to_json() if run is None else None,
        "pairs": num_pairs,
        "episodes": num_episodes,
        "repeats": REPEATS,
        "return_of_the_exact_solve": float(np.mean(comparison.exact_returns)),
    }
    variants = [variant for variant in VARIANTS if not solvers or variant.solver in solvers]
    rows, stem = [], task.replace("/", "-")
    for variant in variants:
        rows.append(comparison.row(variant))
        console.print(f"{variant.line} {variant.setting}: error {rows[-1]['error']:.1e}")
        write(out / f"{stem}.json", {**content, "finished": len(rows) == len(variants), "rows": rows})
    table(
        f"{task}: error of actions, and change of the return over episodes, from the exact solve",
        [
            {name: row[name] for name in ("line", "setting", "evaluations", "ratio_to_euler_10")}
            | {"ms a batch": 1e3 * row["seconds"], "error": f"{row['error']:.1e}", "return": row["return_change"]}
            | {"95 % interval": "[{:+.2f}, {:+.2f}]".format(*row["return_change_95"])}
            for row in rows
        ],
    )
    gorl.internal.write_whole(out / f"{stem}.png", figure(task, rows))


if __name__ == "__main__":
    answer(app)
