"""`--mesh seeds=2,envs=4`: which devices train a run."""

import math

import jax

import gorl

_EXAMPLE = "--mesh seeds=2,envs=4"


def parse_mesh(text: str | None) -> jax.sharding.Mesh | None:
    """The mesh of a text such as `seeds=2,envs=4`; `None` for the default one.

    **Raises:**

    `gorl.InputError` if the text is not one, or there are fewer devices.
    """
    if text is None:
        return None
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, count = (word.strip() for word in part.partition("="))
        if name not in gorl.internal.MESH_AXES:
            raise gorl.internal.unknown_name("axis of --mesh", name, gorl.internal.MESH_AXES)
        if name in axes or not count.isdecimal() or int(count) < 1:
            raise gorl.InputError(f"--mesh {text} is not a mesh: give each axis one number of devices, as {_EXAMPLE}.")
        axes[name] = int(count)
    needed, devices = math.prod(axes.values()), jax.devices()
    if needed > len(devices):
        raise gorl.InputError(
            f"--mesh {text} takes {needed} devices, and there are {len(devices)}: ask for fewer"
            + (", or set JAX_NUM_CPU_DEVICES." if devices[0].platform == "cpu" else ".")
        )
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=devices[:needed])


def devices_of_a_seed(config: gorl.Config, keys: jax.Array, mesh: jax.sharding.Mesh | None) -> int:
    """The number of devices that the environments of a seed are on. Only it changes the rounding of a run."""
    chosen = gorl.internal.mesh_of(config, keys, mesh)
    return 1 if chosen is None else chosen.shape["envs"]
