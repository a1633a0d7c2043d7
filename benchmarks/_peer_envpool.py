"""EnvPool's tasks in a process of its own: random actions in a jitted scan, as JSON on standard output."""

import json
import sys
import time

import envpool  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

# Its actions are in double precision.
jax.config.update("jax_enable_x64", True)


def main() -> None:
    """Steps twice, and prints the seconds of the second time: in the first it is compiled."""
    settings = json.loads(sys.argv[1])
    num_envs, num_steps = settings["num_envs"], settings["num_steps"]
    pool = envpool.make(
        f"{settings['task']}-v1", env_type="dm", num_envs=num_envs, num_threads=settings["num_threads"], seed=0
    )
    pool.reset()
    handle, _, _, step = pool.xla()
    size = pool.action_spec().shape[0]

    @jax.jit
    def run(handle: jax.Array, key: jax.Array) -> jax.Array:
        def body(handle: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            action = jax.random.uniform(key, (num_envs, size), minval=-1, maxval=1, dtype=jnp.float32)
            handle, seen = step(handle, action.astype(jnp.float64))
            return handle, seen.reward

        return jax.lax.scan(body, handle, jax.random.split(key, num_steps))[1]

    jax.block_until_ready(run(handle, jax.random.key(0)))
    began = time.perf_counter()
    jax.block_until_ready(run(handle, jax.random.key(1)))
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
