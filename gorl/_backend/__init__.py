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
from ._sharding import (
    map_seeds as map_seeds,
    memory_for_seeds as memory_for_seeds,
    num_devices_of_program as num_devices_of_program,
    seed_sharding as seed_sharding,
)
from ._shuffling import shuffle as shuffle
