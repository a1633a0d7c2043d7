"""For processes that take far longer to compile than to run."""

import importlib.metadata
import os

# Three fifths of the time that the default takes, for programs that are as right and, some of them, slower to run. From
# 0.11 on JAX has them no longer, and would end the process at an option that it does not know.
_HAS_OLDER_EMITTERS = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false" if _HAS_OLDER_EMITTERS else ""
UNOPTIMISED = "--xla_backend_optimization_level=0"


def quick_environment(**variables):
    """The environment of a process whose programs are compiled without optimisation, with these variables as well."""
    return os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}"} | variables
