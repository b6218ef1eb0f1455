"""Eight devices for every test, before JAX starts; commands run with one."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
