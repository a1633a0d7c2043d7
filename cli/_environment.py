"""The environment variables that JAX reads: the directory of compiled programs, and the number of devices."""

import importlib.util
import os
import pathlib
import runpy

import platformdirs

_MAX_BYTES = 2 * 1024**3  # a run leaves 10 to 50 MB; above the limit JAX removes the programs used least recently


def keep_programs(directory: pathlib.Path | None) -> None:
    """Lets JAX find the programs that earlier processes compiled.

    It sets environment variables, because JAX's own configuration would take an import of JAX, which is slower than
    `--help`. Variables that are set already stay as they are.

    **Arguments:**

    - `directory`: where the programs are; `off` for nowhere; `None` for the place that the environment names, or else
        the user's cache.
    """
    if directory == pathlib.Path("off"):
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            import gorl

            raise gorl.InputError(
                f"--cache {directory} cannot be made a directory: {error.strerror}. Give another, or off."
            ) from error
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory.absolute())
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_in_own(platformdirs.user_cache_path("gorl", appauthor=False))
    # Most of a run is one program, but the dozens of small ones add up to seconds.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _keep_in_own(directory: pathlib.Path) -> None:
    """Keeps programs in a directory of gorl's own. Only there gorl sets a limit, since it must not remove other files.

    With a limit, JAX needs a file beside each program that says when the program was last used. It stores nothing more
    as soon as one of them is missing. It is missing where the process was killed, or had no limit.
    """
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    if os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MAX_BYTES)) == "-1":  # the user wants no limit
        return
    for program in directory.glob("*-cache"):
        if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
            program.unlink(missing_ok=True)


def use_every_core() -> None:
    """Makes each core of the CPU a device of JAX, so that seeds run in parallel. On a GPU it changes nothing.

    Variables that are set already stay as they are.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and "JAX_NUM_CPU_DEVICES" not in os.environ:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(_num_cores())


def _num_cores() -> int:
    # An import of gorl imports JAX, which reads the variable. So this runs one file of gorl without importing gorl.
    spec = importlib.util.find_spec("gorl")
    assert spec is not None
    assert spec.origin is not None
    return runpy.run_path(str(pathlib.Path(spec.origin).with_name("_backend") / "_machine.py"))["num_cores"]()
