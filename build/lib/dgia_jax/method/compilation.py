"""Compiles the training step once, for fixed shapes and a fixed layout."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dgia_jax import sharding
from dgia_jax.method import train_state


def compile_step(
  step: Callable, mesh: jax.sharding.Mesh, state: train_state.TrainState, batch: Mapping[str, Any]
) -> Callable:
  """Compiles the step for these shapes; the state's memory is reused.

  Args:
    step: function (state, batch) -> (state, output) with everything else bound.
    mesh: the mesh.
    state, batch: global arrays, or `jax.ShapeDtypeStruct`s.

  Returns:
    A compiled function. Arguments of any other shape or layout are an error; it never recompiles.
  """
  states = train_state.layout(mesh, state)
  batches = jax.tree.map(lambda _: sharding.batch(mesh), batch)
  jitted = jax.jit(
    step,
    in_shardings=(states, batches),
    out_shardings=(states, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return jitted.lower(state, batch).compile()
