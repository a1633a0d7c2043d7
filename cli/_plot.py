"""Pictures."""

import io

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np

import gorl

# The blue of Okabe and Ito's palette, which colour-blind people can tell from its neighbours.
_BLUE = "#0072B2"


def learning_curve(title: str, curve: gorl.Curve) -> bytes:
    """A PNG of a run's returns against environment steps.

    The line is the mean over seeds, the band reaches from the lowest seed to the highest, thin lines are the seeds, and
    dotted lines stand where a decoder was refined.

    **Arguments:**

    - `title`: what was trained.
    - `curve`: of a run over seeds, with a leading axis.

    **Returns:**

    The picture.
    """
    returns = np.asarray(curve.mean_return)
    env_steps, stages = curve.env_steps[0], np.asarray(curve.stage[0])
    figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for stage in np.unique(stages):
        here = stages == stage
        steps = env_steps[here]
        axes.plot(steps, returns[:, here].T, color=_BLUE, linewidth=0.7, alpha=0.35)
        axes.fill_between(steps, returns[:, here].min(0), returns[:, here].max(0), color=_BLUE, alpha=0.12, linewidth=0)
        axes.plot(steps, returns[:, here].mean(0), color=_BLUE, linewidth=2, marker="o", markersize=3)
        if stage > 0:
            axes.axvline(steps[0], color="0.4", linewidth=1, linestyle=":")
        axes.annotate(
            f"stage {stage}",
            (steps[0], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            verticalalignment="top",
            color="0.4",
        )
    num_seeds = returns.shape[0]
    axes.set_title(f"{title}: mean and range of {num_seeds} seed{'s' * (num_seeds > 1)}", loc="left")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return")
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    lowest, highest = min(0.0, float(np.nanmin(returns))), float(np.nanmax(returns))
    axes.set_xlim(0, 1.01 * env_steps[-1])
    axes.set_ylim(lowest, lowest + 1.15 * max(highest - lowest, 1e-3))  # room for the names of the stages
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
