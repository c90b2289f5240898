"""Row-major storage of an array, on every device for the part that it owns.

The compiler cannot split a layout constraint among devices: without the rule below it would gather
the whole array on each of them first.
"""

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


@jax.custom_vjp
def row_major(x: Float[Array, "B T U"]) -> Float[Array, "B T U"]:
  """Makes the compiler store an array, and its gradient, in the order of the axes."""
  return _constrained(x)


def _constrain(x: Array) -> Array:
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


_constrained = custom_partitioning(_constrain)
_constrained.def_partition(
  # Each device constrains its own part.
  partition=lambda mesh, operands, result: (mesh, _constrain, result.sharding, (result.sharding,)),
  infer_sharding_from_operands=lambda mesh, operands, result: operands[0].sharding,
  sharding_rule="b t u -> b t u",
)
row_major.defvjp(lambda x: (_constrained(x), None), lambda _, gradient: (_constrained(gradient),))
