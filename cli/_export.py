"""`gorl export`: policies as files for programs without this library."""

import importlib.util
import pathlib
from collections.abc import Callable

import gorl

from ._process import check_output, say, write_output

_DRAWS = ("latent", "seed")
_KINDS: dict[str, Callable[[gorl.Policy, str], bytes]] = {
    ".stablehlo": gorl.export_stablehlo,
    ".onnx": lambda policy, _: gorl.export_onnx(policy),  # of latents only
}


def check_export(path: pathlib.Path, draw: str) -> None:
    """Checks what [`export`][] can check without the policy."""
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


def export(policy: gorl.Policy, path: pathlib.Path, draw: str) -> None:
    """Writes a policy to files for programs without this library, and prints their inputs and outputs.

    **Arguments:**

    - `policy`: of one seed.
    - `path`: the file: `.stablehlo` or `.onnx`; or one without a suffix, which becomes both. In that case it leaves
        out an `.onnx` that cannot be made, and says why.
    - `draw`: the policy's source of randomness: `"latent"` or `"seed"`, for a `.stablehlo` only.
    """
    check_export(path, draw)
    drawn = ("seed", "uint32", ()) if draw == "seed" else ("latent", "float32", policy.encoder.noise_shape)
    observation = ("observation", "float32", (policy.observation_size,))
    action = ("action", "float32", (policy.action_size,))
    signature = f"{_described(observation)}, {_described(drawn)} -> {_described(action)}"
    for file in _files(path, draw):
        try:
            content = _KINDS[file.suffix.lower()](policy, draw)
        except gorl.InputError as error:
            if file == path or file.suffix != ".onnx":
                raise
            say(f"{file} is left out: {error}")
            continue
        write_output(file, content)
        print(f"{file}, {len(content) / 1000:,.0f} kB: {signature}")


def _files(path: pathlib.Path, draw: str) -> list[pathlib.Path]:
    suffixes = (".stablehlo",) if draw == "seed" else _KINDS
    return [path] if path.suffix else [path.with_suffix(suffix) for suffix in suffixes]


def _described(array: tuple[str, str, tuple[int, ...]]) -> str:
    name, dtype, shape = array
    return f"{name} {dtype}[{', '.join(['batch', *map(str, shape)])}]"
