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
    """Steps to given times, without the checks of `diffrax.StepTo`: each of those is a call back to the host in every
    solve, which on a GPU is a wait in every environment step. Here the times increase by construction."""

    def wrap(self, direction: Any) -> "_GivenSteps":
        return _GivenSteps(self.ts * direction)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any) -> Any:
        return self.ts[1], 2  # where the first step ends, and which time comes next


class Integrator(eqx.Module):
    """How an ordinary differential equation is integrated.

    **Arguments:**

    - `solver`: any explicit diffrax ODE solver.
    - `num_steps`: how many steps the solver takes where they are given, rather than adapted.
    - `controller`: any diffrax step-size controller that adapts the steps; `None` for steps that are given.
    - `max_steps`: the most steps that the controller may take.
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
        """Follows a vector field.

        **Arguments:**

        - `field`: the derivative at a time and a point. What it depends on it should hold, as an `equinox.Module` or a
            `jax.tree_util.Partial` does, rather than close over: jax.checking_leaks takes that for a leak.
        - `start`: where to start.
        - `times`: `num_steps + 1` increasing times to step to, from the first to the last; a controller uses only these
            two.

        **Returns:**

        The point at the last time, or NaN if the controller did not arrive in `max_steps`.
        """
        if self.controller is None:
            # Given steps have a known number, so that no device has to be asked whether the solve is over.
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
    """The integrator that hyperparameters which have been checked with [`check_solver`][] ask for."""
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
    """The name that a solver is remembered by.

    **Raises:**

    `gorl.InputError` if it is none, or has options of its own, which a name cannot say.
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
    """The diffrax solvers that step an ordinary differential equation without solving equations inside, by name."""
    found = [getattr(diffrax, name) for name in dir(diffrax)]
    kinds = (diffrax.Euler, diffrax.AbstractERK)
    return {
        kind.__name__: kind
        for kind in found
        if isinstance(kind, type) and issubclass(kind, kinds) and kind is not diffrax.AbstractERK
    }
