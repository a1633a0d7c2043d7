"""What the command line and the benchmarks need and users do not. It may change with any version."""

from ._backend import MESH_AXES as MESH_AXES, num_cores as num_cores, on_one_device as on_one_device
from ._checkpoint import (
    remove_unfinished as remove_unfinished,
    write_whole as write_whole,
    written_by as written_by,
)
from ._density import sample_before_tanh as sample_before_tanh
from ._env import Scene as Scene, family as family, scene as scene
from ._errors import unknown_name as unknown_name
from ._evaluation import evaluate_with_terms as evaluate_with_terms, load_for as load_for
from ._gaussian import divergence as divergence, log_tanh_slope as log_tanh_slope
from ._hyperparameters import parse as parse, split_setting as split_setting, whole_number as whole_number
from ._interval import Interval as Interval, interval as interval
from ._live import (
    Moment as Moment,
    Reach as Reach,
    reachable as reachable,
    show as show,
    start_live as start_live,
    step_live as step_live,
)
from ._method import find_method as find_method
from ._prepare import mesh_of as mesh_of
from ._render import runaway as runaway
