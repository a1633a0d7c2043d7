"""How fast each part of a run is, over how fast this machine could do what the part is made of.

Two limits are measured in the same run: physics under random actions, which is MuJoCo's engine alone where that
simulates; and the matrix products that the networks amount to, at their shapes. A part's ratio is its time over the sum
of the limits of what it does; 1 would be perfect.
"""

import dataclasses
import functools
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import typer

import gorl

from ._engine import engine_seconds, is_by_engine
from ._random_actions import random_actions
from ._report import RESULTS, answer, compiled, console, png, seconds, table, timed, with_settings, write

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLOURS = {"physics": "#0072B2", "matrix products": "#009E73", "everything else": "#D55E00"}


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a run and what it took.

    **Arguments:**

    - `name`: what it is called.
    - `unit`, `amount`: what it does, and how many of them.
    - `compiling`, `running`: seconds; compiling includes tracing.
    - `physics`, `products`: seconds at the two limits.
    """

    name: str
    unit: str
    amount: int
    compiling: float
    running: float
    physics: float
    products: float

    @property
    def ratio(self) -> float:
        """Its time over that of the limits."""
        return self.running / (self.physics + self.products)

    def as_json(self) -> dict[str, Any]:
        """Its figures."""
        return {**dataclasses.asdict(self), "per_second": self.amount / self.running, "ratio": self.ratio}


def layers(network: eqx.nn.MLP) -> list[tuple[int, int]]:
    """The inputs and outputs of each layer of a perceptron."""
    return [(layer.in_features, layer.out_features) for layer in network.layers]  # pyright: ignore[reportReturnType]


@functools.cache
def product_seconds(rows: int, inner: int, columns: int) -> float:
    """How long a product of matrices takes, `rows x inner` by `inner x columns`."""
    left_key, right_key = jax.random.split(jax.random.key(0))
    left, right = jax.random.normal(left_key, (rows, inner)), jax.random.normal(right_key, (inner, columns))

    # Products of a few microseconds: in a loop, which needs each of them, so that calling does not count.
    repeats = max(1, int(2e8 / (2 * rows * inner * columns)))

    @jax.jit
    def repeated(left: jax.Array, right: jax.Array) -> jax.Array:
        def body(_: int, sum_: jax.Array) -> jax.Array:
            return (left + sum_[0, 0] * 1e-30) @ right

        return jax.lax.fori_loop(0, repeats, body, jnp.zeros((rows, columns)))

    return seconds(repeated, left, right) / repeats


def forward_seconds(network: eqx.nn.MLP, batch: int) -> float:
    """How long the matrix products of a network's forward pass take by themselves."""
    return sum(product_seconds(batch, inputs, outputs) for inputs, outputs in layers(network))


def gradient_seconds(network: eqx.nn.MLP, batch: int) -> float:
    """How long the matrix products of a forward and a backward pass take: for each layer one forwards, one for the
    gradient of its weights and, but in the first, one for that of its inputs."""
    weights = sum(product_seconds(outputs, batch, inputs) for inputs, outputs in layers(network))
    inputs = sum(product_seconds(batch, outputs, inputs) for inputs, outputs in layers(network)[1:])
    return forward_seconds(network, batch) + weights + inputs


def networks_of(policy: gorl.Policy, fitted: bool) -> list[tuple[eqx.nn.MLP, int]]:
    """The networks that one action takes, and how often each is evaluated."""
    encoder = policy.encoder
    assert isinstance(encoder, gorl.GaussianEncoder)
    found = [(encoder.network, 1)]
    if fitted:
        decoder = policy.decoder.decoder  # pyright: ignore[reportAttributeAccessIssue]
        field = decoder.velocity if isinstance(decoder, gorl.FlowDecoder) else decoder.noise
        found.append((field.network, decoder.integrator.num_steps))
    return found


def acting_seconds(policy: gorl.Policy, fitted: bool, batch: int) -> float:
    """How long the matrix products of one action for each of `batch` environments take."""
    return sum(times * forward_seconds(network, batch) for network, times in networks_of(policy, fitted))


def measure(config: gorl.Config, say: Callable[[Part], None]) -> None:
    """Measures each part of a run of this config, and says each as soon as it is measured."""
    learner, refinement = config.learner, config.refinement
    assert isinstance(learner, gorl.PPO)
    assert isinstance(config.decoder, gorl.FlowMatching)
    env = gorl.load_environment(config.env)
    training = env.in_training
    keys = jax.random.split(jax.random.key(0), 8)

    def add(
        name: str,
        unit: str,
        amount: int,
        function: Callable,
        arguments: tuple,
        physics: float,
        products: float,
        compiled_before: float = 0.0,
    ) -> None:
        run, compiling = compiled(function, *arguments)
        say(Part(name, unit, amount, compiling + compiled_before, seconds(run, *arguments), physics, products))

    def physics_seconds(num_envs: int, num_steps: int, name: str) -> float:
        start = eqx.filter_jit(jax.vmap(env.start))(jax.random.split(keys[0], num_envs))
        arguments = (start, keys[1])
        run, compiling = compiled(random_actions(training, num_envs, num_steps), *arguments)
        running = seconds(run, *arguments)
        # Where MJX simulates, or nothing of MuJoCo's, random actions are the limit, and shown with a ratio of 1.
        limit = engine_seconds(env, num_envs, num_steps) if is_by_engine(config.env, env) else running
        say(Part(name, "env steps", num_envs * num_steps, compiling, running, limit, 0.0))
        return limit

    steps = learner.num_unrolls * learner.unroll_length
    physics = physics_seconds(learner.num_envs, steps, "physics")

    # A state in which the environments are under way, with a decoder that is no identity.
    start_key = keys[2]
    learner_state = learner.init(env.observation_size, env.action_size, start_key)
    noise = jax.random.normal(keys[3], (1000, env.observation_size))
    decoder = config.decoder.init(gorl.RunningStatistics.of(noise), env.action_size, keys[3])

    def policy(fitted: bool) -> gorl.Policy:
        staged = gorl.StagedDecoder(decoder, jnp.asarray(fitted))
        return gorl.Policy(learner.encoder(learner_state), staged, env.observation_size, env.action_size)

    def act(
        policy: gorl.Policy, rollout_state: gorl.RolloutState, key: jax.Array
    ) -> tuple[gorl.RolloutState, gorl.Experience]:
        return gorl.rollout(training, policy, rollout_state, learner.num_unrolls, learner.unroll_length, key)

    rollout_state = gorl.RolloutState.empty(training, learner.num_envs)
    run, act_compiling = compiled(act, policy(False), rollout_state, keys[4])
    # Twice: the first begins all episodes, for which the second draws new start states, as resets of 200 steps may be.
    rollout_state, _ = run(policy(False), rollout_state, keys[4])
    rollout_state, experience = run(policy(False), rollout_state, keys[5])
    diffusion = gorl.Diffusion(width=config.decoder.width, depth=config.decoder.depth)
    other = gorl.StagedDecoder(
        diffusion.init(gorl.RunningStatistics.of(noise), env.action_size, keys[3]), jnp.asarray(True)
    )
    with_diffusion = eqx.tree_at(lambda p: p.decoder, policy(True), other)
    for name, actor, fitted in (
        ("rollout, identity", policy(False), False),
        (f"rollout, flow, {config.decoder.num_steps} steps", policy(True), True),
        ("rollout, diffusion, 10 steps", with_diffusion, True),
    ):
        products = steps * acting_seconds(actor, fitted, learner.num_envs)
        # The first was compiled above, for the experience that the update learns from; the second is the same program.
        before = 0.0 if fitted else act_compiling
        add(
            name, "env steps", steps * learner.num_envs, act, (actor, rollout_state, keys[5]), physics, products, before
        )

    encoder = learner.encoder(learner_state)
    assert isinstance(encoder, gorl.GaussianEncoder)
    batch = steps * learner.num_envs // learner.num_minibatches
    gradient_steps = learner.num_minibatches * learner.num_epochs
    products = gradient_steps * (
        gradient_seconds(encoder.network, batch) + gradient_seconds(learner_state.value, batch)
    ) + forward_seconds(learner_state.value, steps * learner.num_envs)

    def update(learner_state: Any, experience: gorl.Experience, key: jax.Array) -> Any:
        return learner.update(learner_state, experience, key)

    samples = steps * learner.num_envs * learner.num_epochs
    add("PPO update", "samples", samples, update, (learner_state, experience, keys[6]), 0.0, products)

    pairs = refinement.batch_size * max(4, 20_000 // refinement.batch_size)
    kept = env.num_steps // refinement.stride
    count = refinement.num_validation_episodes + -(-pairs // kept)
    some = gorl.replace(config, {"refinement.num_epochs": 1, "refinement.num_episodes": count}).refinement
    observations = jax.random.normal(keys[7], (kept, count, env.observation_size))
    actions = jax.random.normal(keys[6], (kept, count, env.action_size))
    batches = (count - refinement.num_validation_episodes) * kept // refinement.batch_size
    rows = refinement.batch_size * refinement.num_noise_samples
    field = decoder.velocity.network  # pyright: ignore[reportAttributeAccessIssue]
    heldout = refinement.num_validation_episodes * kept * refinement.num_noise_samples
    products = batches * gradient_seconds(field, rows) + heldout / rows * forward_seconds(field, rows)

    def fit(decoder: Any, observations: jax.Array, actions: jax.Array, key: jax.Array) -> Any:
        return gorl.fit_decoder(decoder, observations, actions, some, key)

    add("regression epoch", "samples", batches * rows, fit, (decoder, observations, actions, keys[0]), 0.0, products)

    evaluating = physics_seconds(config.evaluation_episodes, env.num_steps, "physics of an evaluation")
    products = env.num_steps * acting_seconds(policy(True), True, config.evaluation_episodes)

    def evaluate(policy: gorl.Policy, key: jax.Array) -> jax.Array:
        return gorl.evaluate(config.env, policy, key, num_episodes=config.evaluation_episodes)

    amount = config.evaluation_episodes * env.num_steps
    add("evaluation, flow", "env steps", amount, evaluate, (policy(True), keys[1]), evaluating, products)


def run_seconds(config: gorl.Config) -> dict[str, float]:
    """The seconds of the chunks of a run, by kind and stage; the first of all is compiled in its time."""
    found: dict[str, float] = {}
    for step, _, took in timed(config, jax.random.key(0)):
        name = f"{gorl.Phase(int(step.phase)).name.lower()}, stage {int(step.stage)}" if found else "first, compiling"
        found[name] = found.get(name, 0.0) + took
    return found


def figure(results: dict[str, list[Part]]) -> matplotlib.figure.Figure:
    """Where the time of each part goes, as bars that are stacked to 100 %."""
    picture = matplotlib.figure.Figure(figsize=(7.2, 0.6 + 2.4 * len(results)), layout="constrained")
    panels = picture.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, (task, parts) in zip(panels, results.items(), strict=True):
        shown = [part for part in parts if not part.name.startswith("physics")]
        names = [part.name for part in shown]
        left = [0.0] * len(shown)
        for kind, colour in COLOURS.items():
            amounts = []
            for part in shown:
                limits = {"physics": part.physics, "matrix products": part.products}
                limits["everything else"] = max(0.0, part.running - part.physics - part.products)
                amounts.append(limits[kind] / max(part.running, part.physics + part.products))
            axes.barh(names, amounts, left=left, color=colour, label=kind)
            left = [begin + amount for begin, amount in zip(left, amounts, strict=True)]
        axes.set_title(task, loc="left")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return picture


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def show(task: str, parts: list[Part]) -> None:
    """Prints a row for each part."""
    table(
        task,
        {
            "part": [part.name for part in parts],
            "per second": [f"{part.amount / part.running:,.0f} {part.unit}" for part in parts],
            "ms": [f"{1e3 * part.running:.1f}" for part in parts],
            "physics, ms": [f"{1e3 * part.physics:.1f}" for part in parts],
            "products, ms": [f"{1e3 * part.products:.1f}" for part in parts],
            "time / limits": [f"{part.ratio:.2f}" for part in parts],
            "compiling, s": [f"{part.compiling:.1f}" for part in parts],
        },
        left=("part",),
    )


@app.command()
def main(
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; may be given several times.")] = None,
    scale: Annotated[str, typer.Option(help="The preset, as in gorl train.")] = "laptop",
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, as in gorl train.")] = None,
    stages: Annotated[bool, typer.Option(help="Train a whole run of each task as well.")] = True,
    out: Annotated[pathlib.Path, typer.Option(help="Where the results go.")] = RESULTS / "throughput",
) -> None:
    """Measures each part of a run, and where the time of it goes."""
    results: dict[str, list[Part]] = {}
    for task in tasks or ["PointMass", "CheetahRun"]:
        config = with_settings(gorl.preset(task, scale), settings)
        results[task] = measure_task(task, config, stages, out / f"{task}.json")
    gorl.internal.write_whole(out / "throughput.png", png(figure(results)))


def measure_task(task: str, config: gorl.Config, stages: bool, path: pathlib.Path) -> list[Part]:
    """Measures, leaves and prints the parts of one task, and a whole run if asked."""
    parts: list[Part] = []
    content: dict[str, Any] = {"task": task, "config": config.to_json(), "finished": False}

    def leave() -> None:
        write(path, content | {"parts": [part.as_json() for part in parts], "peak_megabytes": peak_megabytes()})

    def add(part: Part) -> None:
        parts.append(part)
        leave()  # after each: a measurement that is cut short leaves what it had

    measure(config, add)
    show(task, parts)
    if stages:
        content["seconds"] = run_seconds(config)
        table(f"{task}, a whole run", {name: [f"{took:.1f} s"] for name, took in content["seconds"].items()})
    content["finished"] = True
    leave()
    console.print(f"peak memory {peak_megabytes():,.0f} MB")
    return parts


if __name__ == "__main__":
    answer(app)
