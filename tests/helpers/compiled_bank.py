"""The memory bank's functions as steps run them; by themselves they are compiled piece by piece."""

import jax

from dgia_jax.method import bank_search, memory_bank

search = jax.jit(bank_search.search, static_argnames=("count", "mesh", "anchor", "block_rows"))
gather = jax.jit(memory_bank.gather, static_argnames="mesh")
update = jax.jit(memory_bank.update, static_argnames="mesh")
