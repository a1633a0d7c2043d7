"""The implementations of MuJoCo's physics, by name."""

import jax

from .._errors import InputError, unknown_name

IMPLEMENTATIONS = ("jax", "mujoco", "warp")


def implementation_or_default(implementation: str | None) -> str:
    """The implementation; for `None` the fastest one on the available devices.

    **Raises:**

    `gorl.InputError` for an unknown one, or one that these devices cannot run.
    """
    if implementation is None:
        # Warp without a CUDA device steps one world at a time behind a host callback.
        return "warp" if _has_cuda() else "mujoco" if jax.default_backend() == "cpu" else "jax"
    check_implementation(implementation)
    if implementation == "warp" and not _has_cuda():
        raise InputError(
            "env.implementation warp takes a CUDA device, and JAX sees none: leave it out, or set it to mujoco."
        )
    if implementation == "mujoco" and jax.default_backend() != "cpu":
        raise InputError(
            f"env.implementation mujoco simulates on a CPU, and JAX computes on {jax.default_backend()}: leave it out, "
            "or set JAX_PLATFORMS=cpu."
        )
    return implementation


def check_implementation(implementation: str) -> None:
    """Checks a name, but not whether the devices can run it.

    **Raises:**

    `gorl.InputError`
    """
    if implementation not in IMPLEMENTATIONS:
        raise unknown_name("implementation of the physics", implementation, IMPLEMENTATIONS)


def _has_cuda() -> bool:
    return any("cuda" in str(device.client.platform_version).casefold() for device in jax.devices())
