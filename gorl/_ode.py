"""Ordinary differential equations, by diffrax."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._errors import InputError, unknown_name
from ._types import Real

_MAX_ADAPTIVE_STEPS = 4096  # diffrax's own default; a solve that needs more has gone wrong


class _GivenSteps(diffrax.StepTo):
    """Steps to given times, without the checks of `diffrax.StepTo`. Each check is a host callback in every solve, so on
    a GPU every environment step would wait for it. Here the times increase by construction."""

    def wrap(self, direction: Any) -> "_GivenSteps":
        return _GivenSteps(self.ts * direction)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any) -> Any:
        return self.ts[1], 2  # where the first step ends, and which time comes next


class Integrator(eqx.Module):
    """A solver and its steps.

    **Arguments:**

    - `solver`: any explicit diffrax ODE solver.
    - `num_steps`: the number of steps without a controller.
    - `controller`: any diffrax step-size controller that adapts the steps; `None` for fixed steps.
    - `max_steps`: the largest number of adapted steps.
    """

    solver: diffrax.AbstractSolver = diffrax.Euler()
    num_steps: int = eqx.field(static=True, default=10)
    controller: diffrax.AbstractStepSizeController | None = None
    max_steps: int = eqx.field(static=True, default=_MAX_ADAPTIVE_STEPS)

    def __call__(
        self,
        field: Callable[[Float[Array, ""], Float[Array, " size"]], Float[Array, " size"]],
        start: Float[Array, " size"],
        times: Float[Array, " times"],
    ) -> Float[Array, " size"]:
        """Integrates a vector field.

        **Arguments:**

        - `field`: the derivative at a time and a point. It should hold its arrays, as an `equinox.Module` or a
            `jax.tree_util.Partial` does, and not close over them, which jax.checking_leaks reports as a leak.
        - `start`: the initial point.
        - `times`: `num_steps + 1` increasing times; a controller uses only the first and the last.

        **Returns:**

        The point at the last time, or NaN if the controller did not arrive in `max_steps`.
        """
        if self.controller is None:
            # The number of steps is known, so no device has to be asked whether the solve is done.
            controller, max_steps = _GivenSteps(ts=times), self.num_steps
            adjoint = diffrax.DirectAdjoint()
        else:
            controller, max_steps = self.controller, self.max_steps
            adjoint = diffrax.RecursiveCheckpointAdjoint()
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda time, point, field: field(time, point)),  # pyright: ignore[reportArgumentType]
            self.solver,
            t0=times[0],
            t1=times[-1],
            dt0=None,
            y0=start,
            args=field,
            stepsize_controller=controller,
            adjoint=adjoint,
            max_steps=max_steps,
            throw=False,  # an error check is a host callback in every environment step
        )
        assert solution.ys is not None
        end = solution.ys[0]
        if self.controller is None:
            return end
        return jnp.where(solution.result == diffrax.RESULTS.successful, end, jnp.nan)


def integrator(solver: str, num_steps: int, rtol: Real | None, atol: Real | None) -> Integrator:
    """The integrator of hyperparameters that [`check_solver`][] has checked."""
    controller = None
    if rtol is not None and atol is not None:
        controller = diffrax.PIDController(rtol=jnp.asarray(rtol), atol=jnp.asarray(atol))
        # A function would be a leaf that is no array.
        controller = eqx.tree_at(lambda pid: pid.norm, controller, jax.tree_util.Partial(controller.norm))
    return Integrator(_explicit_solvers()[solver](), num_steps, jax.tree.map(jnp.asarray, controller))


def check_solver(solver: str, rtol: Real | None, atol: Real | None) -> None:
    """Checks the choice of a solver.

    **Raises:**

    `gorl.InputError` if there is no such solver, or it does not go with the tolerances.
    """
    solvers = _explicit_solvers()
    if solver not in solvers:
        raise unknown_name("explicit diffrax solver", solver, solvers)
    if (rtol is None) != (atol is None):
        raise InputError("decoder.rtol and decoder.atol belong together: give both, or neither for equal steps.")
    if rtol is not None and not issubclass(solvers[solver], diffrax.AbstractAdaptiveSolver):
        raise InputError(
            f"decoder.rtol needs a solver that estimates its error, and {solver} does not: try Tsit5 or Heun."
        )


def solver_name(solver: str | diffrax.AbstractSolver) -> str:
    """The name of a solver.

    **Raises:**

    `gorl.InputError` for anything but a solver, and for one with options, which a name does not hold.
    """
    if isinstance(solver, str):
        return solver
    if not isinstance(solver, diffrax.AbstractSolver):
        raise InputError(f"a solver must be a diffrax solver or the name of one, not {solver!r}.")
    if solver != type(solver)():
        raise InputError(
            f"a solver with options of its own cannot be written to a file: give {type(solver).__name__}()."
        )
    return type(solver).__name__


def _explicit_solvers() -> dict[str, type[diffrax.AbstractSolver]]:
    """The explicit diffrax solvers of ordinary differential equations, by name."""
    found = [getattr(diffrax, name) for name in dir(diffrax)]
    kinds = (diffrax.Euler, diffrax.AbstractERK)
    return {
        kind.__name__: kind
        for kind in found
        if isinstance(kind, type) and issubclass(kind, kinds) and kind is not diffrax.AbstractERK
    }
