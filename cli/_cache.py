"""Compiled programs, kept on disk from one process to the next."""

import os
import pathlib

import platformdirs

_MAX_BYTES = 2 * 1024**3  # a run leaves 10 to 50 MB; beyond this, those that were used longest ago go


def keep_programs(directory: pathlib.Path | None) -> None:
    """Lets JAX find the programs that earlier processes compiled. To be called before JAX is imported.

    Through the environment rather than JAX's own configuration, because importing JAX takes longer than answering
    `--help`. Whatever the caller's environment already says is left as it is.

    **Arguments:**

    - `directory`: where they are; `off` for nowhere; `None` for where the environment says, or the user's cache.

    **Raises:**

    `gorl.InputError` if `directory` cannot be one.
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
    # Most of a run is in one program, but the dozens beside it come to seconds.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _keep_in_own(directory: pathlib.Path) -> None:
    """Keeps programs in a directory of gorl's own, which alone it limits: what is in another may not be its to remove.

    Nor could it. Where there is a limit JAX wants a file beside each program that says when it was last used, and
    stores nothing any more where one is missing, as beside whatever it has stored without a limit.
    """
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    if os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MAX_BYTES)) == "-1":  # the user wants no limit
        return
    for program in directory.glob("*-cache"):
        # A process that was killed has not come to the other file, or it was stored without a limit.
        if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
            program.unlink(missing_ok=True)
