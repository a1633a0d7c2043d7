"""How fast each part of a run is, over how fast this machine could do what the part consists of.

Two limits are measured in the same process. One is physics under random actions, or MuJoCo's engine by itself where
that simulates. The other is the matrix products of the networks at their shapes. The ratio of a part is its time over
the sum of its limits: 1 would be perfect.
"""

import functools
import pathlib
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import typer

import gorl

from ._measure import compiled, engine_seconds, fresh_policy, median_seconds, physics_program, rollout_program, timed
from ._report import PALETTE, RESULTS, Out, Settings, Tasks, answer, benchmark, parse_settings, png, table, write

REPEATS = 5
Part = dict[str, Any]
app = benchmark("throughput")


@functools.cache
def product_seconds(rows: int, inner: int, columns: int) -> float:
    """The seconds of one product of matrices, `rows x inner` by `inner x columns`."""
    left_key, right_key = jax.random.split(jax.random.key(0))
    left, right = jax.random.normal(left_key, (rows, inner)), jax.random.normal(right_key, (inner, columns))
    # A product may take microseconds, less than a call. A loop in which each depends on the last hides the call.
    count = max(1, int(2e8 / (2 * rows * inner * columns)))

    def repeated(left: jax.Array, right: jax.Array) -> jax.Array:
        def body(_: int, sum_: jax.Array) -> jax.Array:
            return (left + sum_[0, 0] * 1e-30) @ right

        return jax.lax.fori_loop(0, count, body, jnp.zeros((rows, columns)))

    return median_seconds(jax.jit(repeated), left, right, repeats=REPEATS) / count


def forward_seconds(network: Any, batch: int) -> float:
    """The seconds of the matrix products of a network's forward pass."""
    return sum(product_seconds(batch, layer.in_features, layer.out_features) for layer in network.layers)


def gradient_seconds(network: Any, batch: int) -> float:
    """The seconds of the matrix products of a forward and a backward pass.

    The backward pass has two for each layer, for its weights and its inputs, and none for the inputs of the first.
    """
    weights = sum(product_seconds(layer.out_features, batch, layer.in_features) for layer in network.layers)
    inputs = sum(product_seconds(batch, layer.out_features, layer.in_features) for layer in network.layers[1:])
    return forward_seconds(network, batch) + weights + inputs


def acting_seconds(policy: Any, is_fitted: bool, batch: int) -> float:
    """The seconds of the matrix products of an action of each of several environments."""
    seconds = forward_seconds(policy.encoder.network, batch)
    if is_fitted:
        decoder = policy.decoder.decoder
        field = decoder.velocity if isinstance(decoder, gorl.FlowDecoder) else decoder.noise
        seconds += decoder.integrator.num_steps * forward_seconds(field.network, batch)
    return seconds


def part(
    name: str, unit: str, amount: int, call: tuple[Any, ...], compiling: float, physics: float | None, products: float
) -> Part:
    """The numbers of a part: a call of a compiled function, timed, beside the seconds of its two limits.

    Physics that is `None` is limited by itself.
    """
    running = median_seconds(*call, repeats=REPEATS)
    physics = running if physics is None else physics
    row = {"name": name, "unit": unit, "amount": amount, "compiling": compiling, "running": running}
    row |= {"physics": physics, "products": products}
    return row | {"per_second": amount / running, "ratio": running / (physics + products)}


def measure(config: gorl.Config) -> Iterator[Part]:
    """Each part of a run of this config, as soon as it is measured."""
    learner, decoder = cast(gorl.PPO, config.learner), cast(gorl.FlowMatching, config.decoder)
    refinement, env = config.refinement, gorl.load_environment(config.env)
    keys = jax.random.split(jax.random.key(0), 4)
    flow, identity = fresh_policy(config, env), fresh_policy(config, env, is_fitted=False)
    diffusion = fresh_policy(config, env, gorl.Diffusion(width=decoder.width, depth=decoder.depth))

    def physics(name: str, env: gorl.EpisodicEnv, num_envs: int, num_steps: int) -> Part:
        program, arguments, compiling = physics_program(env, num_envs, num_steps)
        limit = engine_seconds(config.env, env, num_envs, num_steps)
        return part(name, "env steps", num_envs * num_steps, (program, *arguments), compiling, limit, 0.0)

    def learned(name: str, amount: int, function: Callable, arguments: tuple[Any, ...], products: float) -> Part:
        program, compiling = compiled(function, *arguments)
        return part(name, "samples", amount, (program, *arguments), compiling, 0.0, products)

    steps = learner.num_unrolls * learner.unroll_length
    yield (stepping := physics("physics", env.in_training, learner.num_envs, steps))

    program, (_, *state), experience, compiling = rollout_program(config, env, identity)
    other_program, _, _, other_compiling = rollout_program(config, env, diffusion)
    for name, policy, is_fitted, run, seconds in (
        ("rollout, identity", identity, False, program, compiling),
        (f"rollout, flow, {decoder.num_steps} steps", flow, True, program, compiling),
        ("rollout, diffusion, 10 steps", diffusion, True, other_program, other_compiling),
    ):
        products = steps * acting_seconds(policy, is_fitted, learner.num_envs)
        call = (run, policy, *state)
        yield part(name, "env steps", steps * learner.num_envs, call, seconds, stepping["physics"], products)

    learner_state: Any = learner.init(env.observation_size, env.action_size, keys[0], env.critic_observation_size)
    networks = (learner_state.encoder.network, learner_state.value)
    batch = steps * learner.num_envs // learner.num_minibatches
    products = learner.num_minibatches * learner.num_epochs * sum(gradient_seconds(one, batch) for one in networks)
    products += forward_seconds(learner_state.value, steps * learner.num_envs)

    def update(learner_state: Any, experience: gorl.Experience, key: jax.Array) -> Any:
        return learner.update(learner_state, experience, key)

    samples = experience.reward.size * learner.num_epochs
    yield learned("PPO update", samples, update, (learner_state, experience, keys[1]), products)

    kept = env.num_steps // refinement.stride
    pairs = refinement.batch_size * max(4, 20_000 // refinement.batch_size)
    count = refinement.num_validation_episodes + -(-pairs // kept)
    some = gorl.replace(refinement, {"num_epochs": 1, "num_episodes": count})
    observations = jax.random.normal(keys[2], (kept, count, env.observation_size))
    actions = jax.random.normal(keys[3], (kept, count, env.action_size))
    batches = (count - refinement.num_validation_episodes) * kept // refinement.batch_size
    rows = refinement.batch_size * refinement.num_noise_samples
    validation_rows = refinement.num_validation_episodes * kept * refinement.num_noise_samples
    fitted: Any = cast(gorl.StagedDecoder, flow.decoder).decoder
    field = fitted.velocity.network
    products = batches * gradient_seconds(field, rows) + validation_rows / rows * forward_seconds(field, rows)

    def fit(decoder: Any, observations: jax.Array, actions: jax.Array, key: jax.Array) -> Any:
        return gorl.fit_decoder(decoder, observations, actions, some, key)

    yield learned("regression epoch", batches * rows, fit, (fitted, observations, actions, keys[0]), products)

    episodes = config.evaluation_episodes
    products = env.num_steps * acting_seconds(flow, True, episodes)
    yield (stepping := physics("physics of an evaluation", env, episodes, env.num_steps))

    def evaluate(policy: gorl.Policy, key: jax.Array) -> jax.Array:
        return gorl.evaluate(config.env, policy, key, num_episodes=episodes)

    program, compiling = compiled(evaluate, flow, keys[1])
    call = (program, flow, keys[1])
    yield part("evaluation, flow", "env steps", stepping["amount"], call, compiling, stepping["physics"], products)


def run_seconds(config: gorl.Config) -> dict[str, float]:
    """The seconds of a run by phase and stage; its first step, which includes compiling, is apart."""
    found: dict[str, float] = {}
    for step, _, took in timed(config, jax.random.key(0)):
        name = f"{gorl.Phase(int(step.phase)).name.lower()}, stage {int(step.stage)}" if found else "first, compiling"
        found[name] = found.get(name, 0.0) + took
    return found


def figure(results: dict[str, list[Part]]) -> matplotlib.figure.Figure:
    """The shares of physics, matrix products and everything else in the time of each part, as stacked bars."""
    picture = matplotlib.figure.Figure(figsize=(7.2, 0.6 + 2.4 * len(results)), layout="constrained")
    panels = picture.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, (task, parts) in zip(panels, results.items(), strict=True):
        shown = [part for part in parts if not part["name"].startswith("physics")]
        physics, products, running = np.array(
            [[part[name] for name in ("physics", "products", "running")] for part in shown]
        ).T
        whole, left = np.maximum(running, physics + products), np.zeros(len(shown))
        kinds = {"physics": physics, "matrix products": products, "everything else": whole - physics - products}
        for (kind, seconds), colour in zip(kinds.items(), PALETTE, strict=False):
            axes.barh([part["name"] for part in shown], seconds / whole, left=left, color=colour, label=kind)
            left += seconds / whole
        axes.set_title(task, loc="left")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return picture


def measure_task(task: str, config: gorl.Config, stages: bool, path: pathlib.Path) -> list[Part]:
    """Measures, leaves and prints the parts of one task, and a whole run if asked."""
    parts: list[Part] = []
    content: dict[str, Any] = {"task": task, "config": config.to_json(), "repeats": REPEATS, "finished": False}

    def leave(**more: Any) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
        write(path, {**content, "parts": parts, "peak_megabytes": peak, **more})

    for part in measure(config):
        parts.append(part)
        leave()  # a benchmark that is stopped leaves what it measured
    shown = ("name", "unit", "per_second", "running", "physics", "products", "ratio", "compiling")
    table(f"{task}, seconds, medians of {REPEATS}", [{name: part[name] for name in shown} for part in parts])
    if stages:
        content["seconds"] = run_seconds(config)
        table(f"{task}, a whole run, seconds", [content["seconds"]])
    leave(finished=True)
    return parts


@app.command()
def main(
    tasks: Tasks = None,
    scale: Annotated[str, typer.Option(help="The preset, as in gorl train.")] = "laptop",
    settings: Settings = None,
    stages: Annotated[bool, typer.Option(help="Train a whole run of each task as well.")] = True,
    out: Out = RESULTS / "throughput",
) -> None:
    """Measures each part of a run, and what its time goes to."""
    presets = {task: gorl.preset(task, scale) for task in tasks or ("PointMass", "CheetahRun")}
    configs = {task: gorl.replace(preset, parse_settings(preset, settings)) for task, preset in presets.items()}
    results = {task: measure_task(task, config, stages, out / f"{task}.json") for task, config in configs.items()}
    gorl.internal.write_whole(out / "throughput.png", png(figure(results)))


if __name__ == "__main__":
    answer(app)
