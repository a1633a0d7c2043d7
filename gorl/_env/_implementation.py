"""The implementations of MuJoCo's physics, by name."""

import contextlib
import importlib
import io
import sys

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


def import_mjx() -> None:
    """Imports MJX for the first time in this process, without Warp where no CUDA device can run it.

    Importing Warp takes 1.5 seconds, a third of what every process imports. MJX in JAX does not need it, and MJX with
    Warp is refused without a CUDA device. A program that has imported either of them keeps both as they are, and Warp
    can be imported by itself afterwards.
    """
    if "mujoco.mjx" in sys.modules or "warp" in sys.modules:
        return
    if _has_cuda():
        with contextlib.suppress(ImportError):
            warp = importlib.import_module("warp")
            warp.config.log_level = warp.LOG_WARNING  # it names each kernel that it compiles
        return
    sys.modules["warp"] = None  # pyright: ignore[reportArgumentType]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that it has not found Warp
            importlib.import_module("mujoco.mjx")
    finally:
        del sys.modules["warp"]


def _has_cuda() -> bool:
    return any("cuda" in str(device.client.platform_version).casefold() for device in jax.devices())
