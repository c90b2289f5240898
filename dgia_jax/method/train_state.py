"""The state that training carries from step to step, created inside jit."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dgia_jax import sharding
from dgia_jax.method import caption_exchange, memory_bank


@flax.struct.dataclass
class TrainState:
  """Everything that a step reads and writes, and that a checkpoint stores."""

  step: memory_bank.Leaf  # () int32, steps done
  params: dict  # nested dict of float32 arrays; block weights are stacked over layers
  opt_state: optax.OptState
  bank: memory_bank.Bank
  ema: Any = None  # average of the trained parameters, see `ema`; None if there is none
  pairs: Any = None  # `caption_exchange.PairMemory`; None without an exchange of captions


def layout(mesh: jax.sharding.Mesh, state: TrainState) -> TrainState:
  """The layout of every array of a state: a TrainState of `NamedSharding`s.

  Args:
    mesh: the mesh.
    state: a TrainState of arrays or `jax.ShapeDtypeStruct`s.
  """
  return TrainState(
    step=sharding.replicated(mesh),
    params=sharding.parameters(mesh, state.params),
    opt_state=sharding.parameters(mesh, state.opt_state),
    bank=jax.tree.map(lambda _: sharding.bank_rows(mesh), state.bank),
    ema=sharding.parameters(mesh, state.ema),
    pairs=jax.tree.map(lambda _: sharding.bank_rows(mesh), state.pairs),
  )


def initializer(
  init_params: Callable[[], Any],
  optimizer: optax.GradientTransformation,
  *,
  num_pairs: int,
  feature_dim: int,
  select_trained: Callable[[Any], Any] = lambda params: params,
  averaged: bool = False,
  with_confidence: bool = False,
  pair_memory: tuple[int, int] | None = None,
) -> Callable[[], TrainState]:
  """A function without arguments that returns a fresh state; to be traced.

  Args:
    init_params: function without arguments that returns the parameters; traced.
    optimizer: an optax transformation.
    num_pairs: training pairs, N before padding.
    feature_dim: D.
    select_trained: the parameters -> those that the optimizer is to change.
    averaged: whether the state holds an average of the trained parameters.
    with_confidence: whether the bank holds a confidence per row, see `confidence_gate`.
    pair_memory: (tokens of a caption, neighbours of a pair), sizes of a
      `caption_exchange.PairMemory`; None for a state without one.
  """

  def init():
    params = init_params()
    trained = select_trained(params)
    rows = memory_bank.padded_rows(num_pairs)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(trained),
      bank=memory_bank.create(rows, feature_dim, with_confidence),
      ema=trained if averaged else None,
      pairs=caption_exchange.create(rows, *pair_memory) if pair_memory else None,
    )

  return init


def with_params(
  mesh: jax.sharding.Mesh, state: TrainState, params: Any, select_trained: Callable[[Any], Any]
) -> TrainState:
  """A fresh state with other parameters, from which an average starts, too."""
  if state.ema is None:
    return state.replace(params=params)
  start_average = jax.jit(
    # A copy, because the next step reuses the memory of both.
    lambda params: jax.tree.map(jnp.copy, select_trained(params)),
    out_shardings=sharding.parameters(mesh, state.ema),
  )
  return state.replace(params=params, ema=start_average(params))


def create(mesh: jax.sharding.Mesh, init: Callable[[], TrainState]) -> TrainState:
  """A fresh state, every array created on the devices that own it.

  Args:
    mesh: the mesh.
    init: see `initializer`.
  """
  return jax.jit(init, out_shardings=layout(mesh, jax.eval_shape(init)))()
