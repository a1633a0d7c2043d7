"""`gorl export`: policies as files for programs without this library."""

import importlib.util
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import gorl

from ._process import check_output, say, write_output

_DRAWS = ("latent", "seed")
_KINDS: dict[str, Callable[[gorl.Policy, str, gorl.EnvConfig | None], bytes]] = {
    ".stablehlo": lambda policy, draw, _: gorl.export_stablehlo(policy, draw),
    ".onnx": lambda policy, _, env: gorl.export_onnx(policy, env),  # of latents only
}
_NUM_CHECKED, _NUM_TIMED = 100, 2000


def check_export(path: pathlib.Path, draw: str, is_compared: bool = False) -> None:
    """Checks what [`export`][] can check without the policy."""
    if is_compared and importlib.util.find_spec("onnxruntime") is None:
        raise gorl.InputError("--check needs onnxruntime, which is not installed: pip install 'gorl[onnx]'.")
    suffix = check_output(path, (*_KINDS, ""))
    for file in _files(path, draw):
        check_output(file, _KINDS)
    if suffix == ".onnx" and draw == "seed":
        raise gorl.InputError("an .onnx takes latents only: leave out --draw seed, or make a .stablehlo.")
    if suffix == ".onnx" and importlib.util.find_spec("onnx") is None:
        raise gorl.InputError(
            "an .onnx needs the package onnx, which is not installed: pip install 'gorl[onnx]', or make a .stablehlo."
        )
    if draw not in _DRAWS:
        raise gorl.internal.unknown_name("draw", draw, _DRAWS)


def export(
    policy: gorl.Policy,
    path: pathlib.Path,
    draw: str,
    env: gorl.EnvConfig | None = None,
    is_compared: bool = False,
) -> None:
    """Writes a policy to files for programs without this library, and prints their inputs and outputs.

    **Arguments:**

    - `policy`: of one seed.
    - `path`: the file: `.stablehlo` or `.onnx`; or one without a suffix, which becomes both. In that case it leaves
        out an `.onnx` that cannot be made, and says why.
    - `draw`: the policy's source of randomness: `"latent"` or `"seed"`, for a `.stablehlo` only.
    - `env`: the environment, which an `.onnx` describes in its metadata.
    - `is_compared`: run the `.onnx` beside the policy, and print how far they are apart and how long an action takes.
    """
    check_export(path, draw, is_compared)
    env = _known(env)
    drawn = ("seed", "uint32", ()) if draw == "seed" else ("latent", "float32", policy.encoder.noise_shape)
    observation = ("observation", "float32", (policy.observation_size,))
    action = ("action", "float32", (policy.action_size,))
    signature = f"{_described(observation)}, {_described(drawn)} -> {_described(action)}"
    for file in _files(path, draw):
        try:
            content = _KINDS[file.suffix.lower()](policy, draw, env)
        except gorl.InputError as error:
            if file == path or file.suffix != ".onnx":
                raise
            say(f"{file} is left out: {error}")
            continue
        write_output(file, content)
        print(f"{file}, {len(content) / 1000:,.0f} kB: {signature}")
        if is_compared and file.suffix.lower() == ".onnx":
            print(_compared(policy, content))


def _known(env: gorl.EnvConfig | None) -> gorl.EnvConfig | None:
    """`env`, if it can be loaded here: a policy can be exported without it."""
    if env is None:
        return None
    try:
        gorl.load_environment(env)
    except gorl.InputError as error:
        say(f"the environment is left out of the file's metadata: {error}")
        return None
    return env


def _compared(policy: gorl.Policy, content: bytes) -> str:
    """What onnxruntime makes of a policy on one core, beside the policy itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    statistics, draw = policy.encoder.statistics, np.random.default_rng(0).normal
    scale = np.sqrt(np.asarray(statistics.variance))
    drawn = np.asarray(statistics.mean) + scale * draw(size=(_NUM_CHECKED, policy.observation_size))
    observations = drawn.astype(np.float32)
    zeros = np.zeros((_NUM_CHECKED, *policy.encoder.noise_shape), np.float32)
    (actions,) = session.run(None, {"observation": observations, "latent": zeros})
    error = np.max(np.abs(actions - np.asarray(jax.vmap(policy.mode)(jnp.asarray(observations)))))
    one, seconds = {"observation": observations[:1], "latent": zeros[:1]}, []
    for _ in range(_NUM_TIMED):
        start = time.perf_counter()
        session.run(None, one)
        seconds.append(time.perf_counter() - start)
    median, slow = 1e6 * np.quantile(seconds, (0.5, 0.99))
    return (
        f"  beside the policy: actions differ by at most {error:.1e}; one action takes {median:,.0f} µs (median), "
        f"{slow:,.0f} µs (99 %) on one core"
    )


def _files(path: pathlib.Path, draw: str) -> list[pathlib.Path]:
    suffixes = (".stablehlo",) if draw == "seed" else _KINDS
    return [path] if path.suffix else [path.with_suffix(suffix) for suffix in suffixes]


def _described(array: tuple[str, str, tuple[int, ...]]) -> str:
    name, dtype, shape = array
    return f"{name} {dtype}[{', '.join(['batch', *map(str, shape)])}]"
