"""EnvPool's tasks with random actions: `python -m benchmarks._peer_envpool SETTINGS` prints the seconds as JSON."""

import json
import sys
import time

import envpool  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)  # its actions are in double precision


def main() -> None:
    """Runs a jitted scan twice, and prints the seconds of the second time, as the first compiles."""
    settings = json.loads(sys.argv[1])
    num_envs, task = settings["num_envs"], f"{settings['task']}-v1"
    pool = envpool.make(task, env_type="dm", num_envs=num_envs, num_threads=settings["num_threads"], seed=0)
    pool.reset()
    handle, _, _, step = pool.xla()
    size = pool.action_spec().shape[0]

    @jax.jit
    def run(handle: jax.Array, key: jax.Array) -> jax.Array:
        def body(handle: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            action = jax.random.uniform(key, (num_envs, size), minval=-1, maxval=1, dtype=jnp.float32)
            handle, result = step(handle, action.astype(jnp.float64))
            return handle, result.reward

        return jax.lax.scan(body, handle, jax.random.split(key, settings["num_steps"]))[1]

    jax.block_until_ready(run(handle, jax.random.key(0)))
    began = time.perf_counter()
    jax.block_until_ready(run(handle, jax.random.key(1)))
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
