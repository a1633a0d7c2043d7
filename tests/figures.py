"""The figures of the README and of the guide on speed, out of the raw files: what their tables have to be.

`python tests/figures.py` prints them.
"""

import csv
import json
import pathlib
import statistics

import numpy as np

import gorl

RESULTS = pathlib.Path(__file__).parent.parent / "benchmarks/results"
METHODS = (
    "gorl-flow",
    "gorl-diffusion",
    "gorl-sac",
    "ppo",
    "fpo",
    "fpo++",
    "dppo",
    "sac",
    "gorl-reppo",
    "reppo",
    "gorl-meanflow",
)
TASKS = ("PointMass", "ReacherEasy", "CheetahRun", "WalkerWalk", "FingerSpin", "HopperStand")


def raw(path):
    """The content of a raw file."""
    return json.loads((RESULTS / path).read_text())


def last_returns(path):
    """The mean return of each seed in the last evaluation of its curve."""
    with (RESULTS / path).open() as file:
        return [float(value) for value in {row["seed"]: row["return_mean"] for row in csv.DictReader(file)}.values()]


def shown(values):
    """A mean with the ends of its interval, as a table shows it."""
    found = gorl.internal.interval(np.array(values))
    assert found.name == "smallest and largest"  # which is what the headings say
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def returns_table():
    """A row for each method, a column for each task; empty where nothing has been run."""
    lines = [f"| `--method` | {' | '.join(TASKS)} |", "| --- |" + " --: |" * len(TASKS)]
    rows = {f"`{method}`": [f"returns/laptop/{task}_{method}.csv" for task in TASKS] for method in METHODS}
    rows["`gorl-flow`, again"] = [f"physics/learning/{task}_gorl-flow.csv" for task in TASKS]
    return [*lines, *(_returns_row(name, paths) for name, paths in rows.items())]


def _returns_row(name, paths):
    cells = [shown(last_returns(path)) if (RESULTS / path).exists() else "" for path in paths]
    return f"| {name} | {' | '.join(cells)} |"


def part(path, name):
    """One part of a run in a raw file of `benchmarks.throughput`."""
    (found,) = [part for part in raw(f"throughput/{path}.json")["parts"] if part["name"].startswith(name)]
    return found


def rate(path, name):
    """The rate of a part over that of its limits."""
    return f"{1 / part(path, name)['ratio']:.2f}"


def physics(ratio, tasks):
    """A ratio of `benchmarks.physics`, of several tasks."""
    return ", ".join(f"{raw(f'physics/{task}.json')['ratios'][ratio]:.2f}" for task in tasks)


def median(path, name):
    """The median of the seconds of something in a raw file of `benchmarks.costs`."""
    return f"{statistics.median(raw(path)['seconds'][name]):.0f} s"


def repeats(path):
    """How often each thing in a raw file was measured."""
    content = raw(path)
    (count,) = {len(times) for times in content.get("steps_per_second", content.get("seconds")).values()}
    return count


def speed_table():
    """What is measured, the figure, the number of runs and the raw file."""
    public = raw("peers/public_CartpoleSwingup.json")
    (ours,), (theirs,) = (public["runs"][name]["seconds"] for name in ("gorl", "public"))
    whole = raw("physics/whole_runs.json")["seconds"]
    engine, mjx = (whole[f"CheetahRun --seeds 2{end}"] for end in ("", " --set env.implementation=jax"))
    memory = raw("costs/memory_CartpoleSwingup.json")
    measured, few = ("CheetahRun", "HopperStand", "WalkerWalk"), ("FingerSpin", "FishSwim", "HumanoidRun")
    starts = [
        ", ".join(median(f"costs/start_{task}.json", f"first evaluation, {kind}") for kind in ("cold", "warm"))
        for task in ("PointMass", "CheetahRun")
    ]
    rows = [
        (
            "public code's seconds over ours, a small pipeline of two stages on CartpoleSwingup, compilation included",
            f"{public['time_ratio']:.1f} ({theirs:.0f} s, {ours:.0f} s)",
            len(public["runs"]["public"]["seconds"]),
            "peers/public_CartpoleSwingup.json",
        ),
        (
            "PPO at Brax's settings on CartpoleSwingup, environment steps per second over Brax's PPO",
            f"{raw('peers/brax_CartpoleSwingup.json')['rate_ratio']:.2f}",
            len(raw("peers/brax_CartpoleSwingup.json")["runs"]["brax"]["seconds"]),
            "peers/brax_CartpoleSwingup.json",
        ),
        (
            "seconds of `gorl-flow` over those of `ppo`, same networks and steps, PointMass",
            f"{raw('costs/decoder_PointMass.json')['ratio']:.2f}",
            repeats("costs/decoder_PointMass.json"),
            "costs/decoder_PointMass.json",
        ),
        (
            "8 seeds over 8 times one seed, PointMass: two devices (perfect: 0.50), one device (perfect: 1.00)",
            f"{raw('costs/seeds_PointMass.json')['ratio']:.2f}, "
            f"{raw('costs/seeds_PointMass_one_device.json')['ratio']:.2f}",
            repeats("costs/seeds_PointMass.json"),
            "costs/seeds_PointMass.json",
        ),
        (
            "PPO's update, rate over that of its matrix products alone: Brax's settings, PointMass, CheetahRun",
            ", ".join(rate(path, "PPO update") for path in ("pipeline/CartpoleSwingup", "PointMass", "CheetahRun")),
            1,
            "throughput/CheetahRun.json",
        ),
        (
            "decoder regression, the same: Brax's settings, PointMass, CheetahRun",
            ", ".join(rate(path, "regression") for path in ("pipeline/CartpoleSwingup", "PointMass", "CheetahRun")),
            1,
            "throughput/CheetahRun.json",
        ),
        (
            "rollout through the ten-step flow, seconds over physics and matrix products: PointMass, CheetahRun",
            f"{part('PointMass', 'rollout, flow')['ratio']:.2f}, {part('CheetahRun', 'rollout, flow')['ratio']:.2f}",
            1,
            "throughput/PointMass.json",
        ),
        (
            "`gorl train` until its first evaluation, nothing or everything compiled before: PointMass",
            starts[0],
            repeats("costs/start_PointMass.json"),
            "costs/start_PointMass.json",
        ),
        ("the same: CheetahRun", starts[1], repeats("costs/start_CheetahRun.json"), "costs/start_CheetahRun.json"),
        (
            "random actions in a jitted scan, steps over MuJoCo's engine alone: CheetahRun, HopperStand, WalkerWalk",
            physics("scan over engine alone", measured),
            repeats("physics/CheetahRun.json"),
            "physics/CheetahRun.json",
        ),
        (
            "the same: FingerSpin, FishSwim, HumanoidRun",
            physics("scan over engine alone", few),
            repeats("physics/FishSwim.json"),
            "physics/FishSwim.json",
        ),
        (
            "the same scan over EnvPool's tasks: CheetahRun, HopperStand, WalkerWalk",
            physics("scan over EnvPool", measured),
            repeats("physics/CheetahRun.json"),
            "physics/CheetahRun.json",
        ),
        (
            "the same: FingerSpin, FishSwim, HumanoidRun (EnvPool's models of the first two are lighter)",
            physics("scan over EnvPool", few),
            repeats("physics/FishSwim.json"),
            "physics/FishSwim.json",
        ),
        (
            "rollout through the flow, engine over MJX: CheetahRun, HopperStand, WalkerWalk",
            physics("rollout over MJX", measured),
            repeats("physics/WalkerWalk.json"),
            "physics/WalkerWalk.json",
        ),
        (
            "`gorl train CheetahRun --seeds 2`, MJX's seconds over the engine's, compilation included",
            f"{mjx / engine:.1f} ({mjx:.0f} s, {engine:.0f} s)",
            1,
            "physics/whole_runs.json",
        ),
        (
            "memory of a refinement of 512 episodes of CartpoleSwingup, times its data, and besides",
            f"{memory['slope']:.2f}, {memory['constant']:.0f} MB",
            1,
            "costs/memory_CartpoleSwingup.json",
        ),
    ]
    lines = ["| measured | figure | runs | raw file in `benchmarks/results/` |", "| --- | --: | --: | --- |"]
    return lines + [f"| {what} | {figure} | {runs} | `{path}` |" for what, figure, runs, path in rows]


def gpu_table():
    """What one GPU does, and the raw file."""
    path = "gpu/NVIDIA_H200.json"
    content = raw(path)
    rates = {(row["task"], row["implementation"]): row["steps_per_second"] for row in content["physics"]}
    (four,) = [row for row in content["seeds"] if row["seeds"] == 4]
    go1 = "robots/go1_ppo_seed0_h200.csv"
    with (RESULTS / go1).open() as file:
        curve = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    seconds = curve[-1]["wall_seconds"] - curve[0]["wall_seconds"]
    evaluated = raw("robots/go1_ppo_seed0_h200.json")["evaluated_on_a_cpu"]["rows"]
    robots = ("Go1JoystickFlatTerrain", "G1JoystickFlatTerrain")
    rows = [
        (
            "random actions, million environment steps a second, Warp: FingerSpin, CheetahRun, 2,048 environments",
            ", ".join(f"{rates[task, 'warp'] / 1e6:.2f}" for task in ("FingerSpin", "CheetahRun")),
            path,
        ),
        (
            "the same over MJX in JAX: FingerSpin, CheetahRun",
            ", ".join(f"{rates[task, 'warp'] / rates[task, 'jax']:.2f}" for task in ("FingerSpin", "CheetahRun")),
            path,
        ),
        (
            "random actions, million environment steps a second, Warp: Unitree's Go1, G1, 8,192 environments",
            ", ".join(f"{rates[robot, 'warp'] / 1e6:.2f}" for robot in robots),
            path,
        ),
        (
            f"`--scale paper` on FingerSpin, {content['projection']['env_steps'] / 1e6:.0f}M steps: minutes, projected "
            f"from {len(content['stage']) - 1} steps of its schedule, without compiling",
            f"{content['projection']['hours'] * 60:.1f}",
            path,
        ),
        ("4 seeds side by side over 4 times one seed, PointMass", f"{four['ratio_to_one_by_one']:.2f}", path),
        (
            f"`ppo` on Go1JoystickFlatTerrain, {curve[-1]['env_steps'] / 1e6:.0f}M steps, one seed: seconds after "
            "compiling, evaluations included",
            f"{seconds:.0f}",
            go1,
        ),
        (
            "its best policy, trained with Warp, on a CPU: return with MuJoCo's engine, with MJX in JAX",
            ", ".join(f"{row['return_mean']:.1f}" for row in evaluated),
            "robots/go1_ppo_seed0_h200.json",
        ),
    ]
    lines = ["| measured | figure | raw file in `benchmarks/results/` |", "| --- | --: | --- |"]
    return lines + [f"| {what} | {figure} | `{path}` |" for what, figure, path in rows]


def solver_table():
    """The solvers that are worth a look, on PointMass."""
    chosen = {("Euler", 5), ("Euler", 10), ("Heun", 4), ("Midpoint", 2), ("Midpoint", 4)}
    lines = [
        "| solver | steps | seconds over ten Euler steps | error of the action | change of the return |",
        "| --- | --: | --: | --: | --: |",
    ]
    return lines + [
        f"| {row['solver']} | {row['num_steps']} | {row['ratio_to_euler_10']:.2f} | {row['error']:.3f} | "
        f"{row['return_change']:.2f} |"
        for row in raw("solvers/PointMass.json")["rows"]
        if (row["solver"], row["num_steps"]) in chosen
    ]


if __name__ == "__main__":
    for table in (returns_table(), speed_table(), gpu_table(), solver_table()):
        print("\n".join(table), end="\n\n")
