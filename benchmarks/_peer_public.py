"""The public GoRL code's whole pipeline, out of a checkout of it, at the sizes of a config of ours."""

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from typing import Any

import gorl

from . import _peer_public_sizes

PIPELINE = pathlib.Path("scripts", "run_gorl_fm.py")
PACKAGES = ("jax", "jax-dataclasses", "mujoco", "mujoco-mjx", "numpy", "optax", "playground", "tqdm", "tyro")
# Asked of the installation, as to import them all takes seconds.
ASK = """
import importlib.metadata, json, sys
installed = {package.metadata["Name"].lower().replace("_", "-"): package.version
             for package in importlib.metadata.distributions()}
print(json.dumps({name: installed.get(name) for name in sys.argv[1:]}))
"""


@dataclasses.dataclass(frozen=True)
class PublicCode:
    """A checkout of the public GoRL code, and the Python that runs it with the versions of what it needs."""

    checkout: pathlib.Path
    python: str
    versions: dict[str, str]

    @staticmethod
    def find(checkout: pathlib.Path, python: str | None) -> "PublicCode":
        """The code in a checkout, to be run by a Python, or by the one that runs this.

        **Raises:**

        `gorl.InputError` if it cannot be run.
        """
        if not (checkout / PIPELINE).is_file():
            raise gorl.InputError(f"--public {checkout}: there is no {PIPELINE} in it: give a checkout of public GoRL.")
        found = shutil.which(python or sys.executable)
        if found is None:
            raise gorl.InputError(f"--public-python {python}: there is no such program.")
        python = os.path.abspath(found)  # not where a link leads: an environment is known by where its Python lies
        asked = subprocess.run([python, "-c", ASK, *PACKAGES], capture_output=True, text=True)
        try:
            versions = json.loads(asked.stdout)
        except json.JSONDecodeError as error:
            raise gorl.InputError(f"--public-python {python}: it does not run as a Python.") from error
        missing = [name for name in PACKAGES if versions[name] is None]
        if missing:
            raise gorl.InputError(
                f"{python} lacks {', '.join(missing)}: give with --public-python a Python in whose environment the "
                "requirements of the public code are installed."
            )
        return PublicCode(checkout.resolve(), python, versions)

    def process(self, directory: pathlib.Path, config: gorl.Config) -> tuple[list[str], dict[str, Any]]:
        """What starts the pipeline at the sizes of a config: the command, and the options of its process.

        It runs in an empty directory, which is filled, so that what it writes is not left in the checkout.
        """
        shims, work = directory / "shims", directory / "work"
        shims.mkdir()
        work.mkdir()
        (work / PIPELINE.parent).symlink_to(self.checkout / PIPELINE.parent)
        shutil.copy(_peer_public_sizes.__file__, shims / "sitecustomize.py")
        shim = shims / "python"  # what the pipeline calls to start its steps
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(self.python)} "$@"\n')
        shim.chmod(0o755)
        environment = dict(os.environ) | {_peer_public_sizes.VARIABLE: json.dumps(ppo_sizes(config))}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # ours finds nothing compiled before either
        for name in ("PATH", "PYTHONPATH"):
            environment[name] = os.pathsep.join([str(shims), *filter(None, [environment.get(name)])])
        return [self.python, str(PIPELINE), *arguments(config)], {"cwd": work, "env": environment}


def ppo_sizes(config: gorl.Config) -> dict[str, int]:
    """What is told to the public code through MuJoCo Playground, in its words: sizes of iterations, not of networks.

    The number of evaluations is the same for every stage, so it is that of the first.
    """
    learner = config.learner
    assert isinstance(learner, gorl.PPO)
    evaluated = range(0, config.stage_iterations[0], config.iterations_per_evaluation)
    return {
        "num_envs": learner.num_envs,
        "unroll_length": learner.unroll_length,
        "batch_size": learner.num_envs * learner.num_unrolls // learner.num_minibatches,
        "num_minibatches": learner.num_minibatches,
        "num_updates_per_batch": learner.num_epochs,
        "num_evals": len(evaluated) + 1,
    }


def arguments(config: gorl.Config) -> list[str]:
    """What the pipeline is called with; it collects in whole iterations, so as many as come closest to our pairs."""
    refinement = config.refinement
    pairs = refinement.num_episodes * (1000 // refinement.stride)
    stages = (str(iterations * config.steps_per_iteration) for iterations in config.stage_iterations)
    options = {
        "env_name": config.env,
        "num_stages": config.num_stages,
        "encoder_timesteps_per_stage": ",".join(stages),
        "data_collection_iterations": max(1, round(pairs / config.steps_per_iteration)),
        "fm_batch_size": refinement.batch_size,
        "fm_num_epochs": refinement.num_epochs,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]
