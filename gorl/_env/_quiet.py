"""Loading models without MuJoCo's warnings."""

import contextlib
from collections.abc import Iterator

import mujoco


@contextlib.contextmanager
def without_model_warnings() -> Iterator[None]:
    """Silences what MuJoCo says of the models that its users cannot change.

    Some of the models that Playground and Brax ship use attributes that the newest MuJoCo deprecates. MuJoCo prints
    that at each load and appends it to a file in the working directory, and a library does neither behind its caller's
    back.
    """
    handler = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.set_mju_user_warning(lambda message: None)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)  # pyright: ignore[reportAttributeAccessIssue]
