"""Everything that only makes a run faster. Without it, results change by rounding only."""

from ._batching import (
    longest_axis as longest_axis,
    map_rows as map_rows,
    mean_gradient as mean_gradient,
    on_cpu as on_cpu,
    sequential_vmap as sequential_vmap,
)
from ._compiler import BackgroundCompiler as BackgroundCompiler
from ._machine import num_cores as num_cores
from ._rows import (
    ENVIRONMENTS as ENVIRONMENTS,
    all_rows as all_rows,
    num_parts as num_parts,
    on_first_part as on_first_part,
    own_rows as own_rows,
)
from ._sharding import (
    MESH_AXES as MESH_AXES,
    SEEDS as SEEDS,
    call_on_mesh as call_on_mesh,
    default_mesh as default_mesh,
    largest_divisor as largest_divisor,
    map_seeds as map_seeds,
    memory_of as memory_of,
    num_devices_of_program as num_devices_of_program,
    on_mesh as on_mesh,
    on_one_device as on_one_device,
    shardings as shardings,
    with_both_axes as with_both_axes,
)
from ._shuffling import shuffle as shuffle
