"""What a flow decoder costs by every solver and number of steps, and how far its actions are from the exact ones.

Exact means 256 steps of Tsit5. The file of results is written again after each row, so that a run that is cut short
leaves what it has measured.
"""

import dataclasses
import pathlib
import statistics
import sys
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.ticker
import numpy as np
import typer

import gorl

from ._report import RESULTS, console, once, png, table, write

# Okabe and Ito's palette, which colour-blind people can tell apart.
COLOURS = {
    "Euler": "#0072B2",
    "Heun": "#D55E00",
    "Midpoint": "#009E73",
    "Tsit5": "#CC79A7",
    "Tsit5, adaptive": "#000000",
}
MARKERS = {"Euler": "o", "Heun": "s", "Midpoint": "^", "Tsit5": "D", "Tsit5, adaptive": "v"}
REPEATS = 11
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
        """The decoder, with its velocity followed like this."""
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


def trained(config: gorl.Config, seeds: int) -> list[gorl.Policy]:
    """The policies of several seeds, trained here and now."""
    result = jax.vmap(gorl.train, in_axes=(None, 0))(config, jax.random.split(jax.random.key(0), seeds))
    return [gorl.of_seed(result.policy, seed) for seed in range(seeds)]


def loaded(path: pathlib.Path, task: str, seeds: int) -> list[gorl.Policy]:
    """The policies of the first seeds of a run.

    **Raises:**

    `gorl.InputError` if there are not as many, or they are of another task.
    """
    policies = gorl.load_policy(path, env=task)
    shape = jnp.shape(staged(policies).fitted)
    if not shape:
        policies, shape = jax.tree.map(lambda leaf: leaf[None], policies), (1,)
    if seeds > shape[0]:
        raise gorl.InputError(f"{path} holds policies of no more than {shape[0]} seeds: give --seeds {shape[0]}.")
    return [gorl.of_seed(policies, seed) for seed in range(seeds)]


def staged(policy: gorl.Policy) -> gorl.StagedDecoder:
    """The decoder of a policy, as its stages left it."""
    if not isinstance(policy.decoder, gorl.StagedDecoder):
        raise gorl.InputError("this policy has no stages: give one that gorl.train made.")
    return policy.decoder


def flow_decoder(policy: gorl.Policy) -> gorl.FlowDecoder:
    """The flow decoder of a policy.

    **Raises:**

    `gorl.InputError` if it has none, or one that has not been fitted.
    """
    decoder = staged(policy)
    if not isinstance(decoder.decoder, gorl.FlowDecoder):
        kind = type(decoder.decoder).__name__
        raise gorl.InputError(f"this policy has a {kind} and no flow decoder: give one of the method gorl-flow.")
    if not bool(decoder.fitted):
        raise gorl.InputError("the decoder of this policy has not been fitted: train for two stages or more.")
    return decoder.decoder


def with_decoder(policy: gorl.Policy, decoder: gorl.FlowDecoder) -> gorl.Policy:
    """The policy with another decoder."""
    return dataclasses.replace(policy, decoder=dataclasses.replace(staged(policy), decoder=decoder))


def pairs(env: gorl.EnvConfig, policy: gorl.Policy, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Observations from episodes of the policy, and a latent for each, drawn from N(0, I)."""
    play_key, choice_key, latent_key = jax.random.split(key, 3)
    played = gorl.play(env, policy, play_key, num_episodes=16, stochastic=True)
    is_seen = np.arange(played.observation.shape[1]) < np.asarray(played.length)[:, None]
    seen = played.observation[is_seen]
    observations = jax.random.choice(choice_key, seen, (count,), replace=len(seen) < count)
    return observations, jax.random.normal(latent_key, (count, policy.action_size))


@eqx.filter_jit
def actions(decoder: gorl.FlowDecoder, observations: jax.Array, latents: jax.Array) -> jax.Array:
    """What the environment receives, for a batch."""
    return jnp.tanh(jax.vmap(decoder.decode)(observations, latents))


class Counted(eqx.Module):
    """A network that tells the host each time it runs."""

    network: eqx.nn.MLP
    tell: Any = eqx.field(static=True)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        jax.debug.callback(self.tell)
        return self.network(inputs)


def velocity_evaluations(decoder: gorl.FlowDecoder, observations: jax.Array, latents: jax.Array) -> float:
    """How often a solve runs the velocity network: counted, and the mean over the pairs where steps are adapted."""
    calls = []
    counted = eqx.tree_at(
        lambda d: d.velocity.network, decoder, Counted(decoder.velocity.network, lambda: calls.append(1))
    )
    # One solve after the other: in a batch all go on until the last has arrived.
    jax.block_until_ready(eqx.filter_jit(jax.lax.map)(lambda pair: counted.decode(*pair), (observations, latents)))
    jax.effects_barrier()
    return len(calls) / len(observations)


class Comparison:
    """What every variant is compared on, and with.

    **Arguments:**

    - `env`: where the policies act.
    - `policies`: one for each seed.
    - `num_pairs`: pairs of observation and latent for each policy.
    - `num_episodes`: episodes for each policy; the same for every variant, so that returns are compared in pairs.
    """

    def __init__(self, env: gorl.EnvConfig, policies: list[gorl.Policy], num_pairs: int, num_episodes: int):
        self.env, self.policies, self.num_episodes = env, policies, num_episodes
        self.decoders = [flow_decoder(policy) for policy in policies]
        pair_key, self.episode_key = jax.random.split(jax.random.key(1))
        self.pairs = [pairs(env, policy, num_pairs, pair_key) for policy in policies]
        self.exact = self._actions(FINE)
        self.exact_returns = self._returns(FINE)

    def _actions(self, variant: Variant) -> np.ndarray:
        return np.stack(
            [actions(variant.of(decoder), *of) for decoder, of in zip(self.decoders, self.pairs, strict=True)]
        )

    def _returns(self, variant: Variant) -> np.ndarray:
        """The return of every episode of every policy."""
        acting = [with_decoder(policy, variant.of(flow_decoder(policy))) for policy in self.policies]
        play = [gorl.evaluate(self.env, one, self.episode_key, num_episodes=self.num_episodes) for one in acting]
        return np.concatenate(play).astype(np.float64)

    def error(self, variant: Variant) -> float:
        """The root mean square of the difference from the exact actions, over pairs and their components."""
        return float(np.sqrt(np.mean((self._actions(variant) - self.exact) ** 2)))

    def cost(self, variant: Variant) -> tuple[float, float]:
        """The seconds of a batch, and their ratio to those of the baseline, both timed in turns."""
        decoder, batch = self.decoders[0], self.pairs[0]
        one, other = variant.of(decoder), BASELINE.of(decoder)
        for warm in (one, other):
            jax.block_until_ready(actions(warm, *batch))
        times = [(once(actions, one, *batch), once(actions, other, *batch)) for _ in range(REPEATS)]
        mine, baseline = (statistics.median(column) for column in zip(*times, strict=True))
        return mine, mine / baseline

    def evaluations(self, variant: Variant) -> float:
        """The velocity evaluations of one solve."""
        observations, latents = self.pairs[0]
        return velocity_evaluations(variant.of(self.decoders[0]), observations[:64], latents[:64])

    def change(self, variant: Variant) -> tuple[float, float]:
        """The mean change of the return from exact actions to these, and half its 95 % interval, over all episodes."""
        change = self._returns(variant) - self.exact_returns
        half = 1.96 * np.std(change, ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.nan
        return float(np.mean(change)), float(half)

    def row(self, variant: Variant) -> dict[str, Any]:
        """All that is measured of a variant."""
        seconds, ratio = self.cost(variant)
        change, half = self.change(variant)
        return {
            "solver": variant.solver,
            "num_steps": variant.num_steps if variant.tolerance is None else None,
            "tolerance": variant.tolerance,
            "line": variant.line,
            "setting": variant.setting,
            "evaluations": self.evaluations(variant),
            "seconds": seconds,
            "ratio_to_euler_10": ratio,
            "error": self.error(variant),
            "return_change": change,
            "return_change_95": [change - half, change + half],
        }


def figure(task: str, rows: list[dict[str, Any]]) -> bytes:
    """Error against cost as a PNG: a line for each solver, a point for each row."""
    picture = matplotlib.figure.Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = picture.subplots()
    for line in dict.fromkeys(row["line"] for row in rows):
        here = [row for row in rows if row["line"] == line]
        cost, error = ([row[name] for row in here] for name in ("ratio_to_euler_10", "error"))
        style = {"color": COLOURS.get(line), "marker": MARKERS.get(line, "o"), "markersize": 5, "linewidth": 1.5}
        (drawn,) = axes.plot(cost, error, label=line, **style)
        for row in here:
            axes.annotate(
                row["setting"],
                (row["ratio_to_euler_10"], row["error"]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
                color=drawn.get_color(),
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("time of a batch of actions, as a multiple of ten Euler steps'")
    axes.set_ylabel("error of an action in [-1, 1], root mean square")
    axes.set_title(f"{task}: beside each point its number of steps, or its tolerance", loc="left", fontsize=11)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(picture)


def show(task: str, rows: list[dict[str, Any]]) -> None:
    """Prints a row for each variant."""
    columns = {
        "solver": [row["line"] for row in rows],
        "steps or tolerance": [row["setting"] for row in rows],
        "evaluations": [f"{row['evaluations']:.4g}" for row in rows],
        "ms a batch": [f"{1e3 * row['seconds']:.2f}" for row in rows],
        "of Euler 10": [f"{row['ratio_to_euler_10']:.2f}" for row in rows],
        "error": [f"{row['error']:.1e}" for row in rows],
        "return": [f"{row['return_change']:+.2f}" for row in rows],
        "95 % interval": ["[{:+.2f}, {:+.2f}]".format(*row["return_change_95"]) for row in rows],
    }
    table(f"{task}: error of the action, and change of the return, from those of the exact solve", columns, ("solver",))


def chosen(solvers: list[str] | None) -> list[Variant]:
    """The variants of the solvers that are asked for.

    **Raises:**

    `gorl.InputError` for a solver that is not among them.
    """
    names = dict.fromkeys(variant.solver for variant in VARIANTS)
    for solver in solvers or []:
        if solver not in names:
            raise gorl.internal.unknown_name("solver", solver, names)
    return [variant for variant in VARIANTS if not solvers or variant.solver in solvers]


def training_config(task: str, steps: str | None) -> gorl.Config:
    """What to train.

    **Raises:**

    `gorl.InputError` for an unknown task, or a number of steps that is none or too small.
    """
    config = gorl.preset(task)
    if steps is None:
        return config
    try:
        total = gorl.internal.whole_number(steps)
    except ValueError as error:
        raise gorl.InputError(f"--steps must be a whole number such as 2e5, not {steps!r}.") from error
    return gorl.reschedule(config, total_steps=total)


def compare(
    task: str,
    seeds: int,
    run: pathlib.Path | None,
    steps: str | None,
    num_pairs: int,
    num_episodes: int,
    solvers: list[str] | None,
    out: pathlib.Path,
) -> None:
    """Measures variant after variant, and leaves what has been measured after each."""
    for name, number in {"seeds": seeds, "pairs": num_pairs, "episodes": num_episodes}.items():
        if number < 1:
            raise gorl.InputError(f"--{name} must be at least 1, not {number}.")
    variants, config = chosen(solvers), training_config(task, steps)
    policies = trained(config, seeds) if run is None else loaded(run, task, seeds)
    comparison = Comparison(config.env, policies, num_pairs, num_episodes)
    content = {
        "task": task,
        "seeds": seeds,
        "policies": "trained here" if run is None else str(run),
        "config": config.to_json() if run is None else None,
        "pairs": num_pairs,
        "episodes": num_episodes,
        "return_of_the_exact_solve": float(np.mean(comparison.exact_returns)),
    }
    stem = task.replace("/", "-")
    rows = []
    for variant in variants:
        rows.append(comparison.row(variant))
        console.print(f"{variant.line} {variant.setting}: error {rows[-1]['error']:.1e}")
        write(out / f"{stem}.json", {**content, "finished": len(rows) == len(variants), "rows": rows})
    show(task, rows)
    gorl.internal.write_whole(out / f"{stem}.png", figure(task, rows))


@app.command()
def main(
    task: Annotated[str, typer.Option(help="Where the policy acts.")] = "PointMass",
    seeds: Annotated[int, typer.Option(help="Policies: trained here, or the first so many of the run.")] = 1,
    run: Annotated[
        pathlib.Path | None,
        typer.Option("--run", "--policy", help="A run of gorl train, or a file of gorl.save_policy, to train nothing."),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Environment steps to train for; the preset's by default.")] = None,
    num_pairs: Annotated[int, typer.Option("--pairs", help="Pairs of observation and latent.")] = 2048,
    num_episodes: Annotated[int, typer.Option("--episodes", help="Episodes that returns are taken over.")] = 128,
    solvers: Annotated[list[str] | None, typer.Option("--solver", help="One of them; all by default.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Where the results go.")] = RESULTS / "solvers",
) -> None:
    """Compares solvers and step counts on a trained flow decoder."""
    try:
        compare(task, seeds, run, steps, num_pairs, num_episodes, solvers, out)
    except gorl.InputError as error:
        print(f"solvers: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
