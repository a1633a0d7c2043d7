"""Gives the public GoRL code other sizes for PPO without touching it, as the `sitecustomize` of its processes.

It takes them from MuJoCo Playground, whose function is wrapped when its module is imported, and no sooner: this runs in
every process that starts, whatever it is for, and must import nothing that it would not.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Sequence
from typing import Any

MODULE = "mujoco_playground.config.dm_control_suite_params"
VARIABLE = "GORL_PEER_SIZES"


class Resized(importlib.abc.Loader):
    """Loads the module as another loader would, and then wraps its function."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self.loader.exec_module(module)
        ask = module.brax_ppo_config

        def brax_ppo_config(*arguments: Any, **options: Any) -> Any:
            config = ask(*arguments, **options)
            config.update(json.loads(os.environ[VARIABLE]))
            return config

        module.brax_ppo_config = brax_ppo_config


class Finder(importlib.abc.MetaPathFinder):
    """Finds the one module where it is, with another loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Resized(spec.loader)
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, Finder())
