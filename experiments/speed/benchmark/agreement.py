"""Checks that all implementations compute the same step from the same weights, views and banks."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from dgia_jax import sharding
from dgia_jax.method import compilation
from dgia_jax.method import views as views_lib
from dgia_jax.training import setup as setup_lib
from experiments.speed.benchmark import jax_step, torch_association, torch_step
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.workload import Workload

_PAIRS = 8  # pairs compared: one float32 step needs no more


class Agreement:
  """`compare`, to be called in a worker process."""

  def __init__(self, workload: Workload, threads: int):
    torch.set_num_threads(threads)
    # With full float32, autotuning Triton's matrix products takes minutes on a GPU.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()
    self._workload = workload

  def compare(self) -> dict[str, Any]:
    """Returns the comparison."""
    return compare(self._workload)


def compare(workload: Workload) -> dict[str, Any]:
  """Runs one float32 training step of every implementation on identical inputs.

  Returns:
    {implementation: {"loss_itc", .., "gradient_norm", "parameter_change", "bank_change",
    "global_relations"}, "largest_difference": the largest relative difference of all of these}.
  """
  config = workload.config
  config.model.dtype = "float32"
  config.batch_size = min(config.batch_size, _PAIRS)
  workload = dataclasses.replace(workload, fields=config.to_dict())
  with jax.default_matmul_precision("highest"):
    ours, start = _our_step(workload)
  outcomes = {"ours": ours}
  for way in torch_association.WAYS:
    outcomes[f"torch {way}"] = _torch_step(workload, start, way)
  return {**outcomes, "largest_difference": largest_difference(outcomes)}


def largest_difference(outcomes: Mapping[str, Mapping[str, float]]) -> float:
  """The largest relative difference from "ours"; NaN if any number is NaN."""
  differences = [
    abs(outcome[name] - value) / max(abs(value), 1e-6)
    for name, value in outcomes["ours"].items()
    for outcome in outcomes.values()
  ]
  return float(np.max(differences))  # Python's max would overlook NaN


def _our_step(workload: Workload) -> tuple[dict[str, float], tuple]:
  """Outcome of our step, and its inputs in host memory."""
  setup = jax_step.make_setup(workload)
  config, state = setup.config, jax_step.make_state(workload, setup)
  batch = sharding.global_batch(
    setup.mesh, workload_lib.batch(workload, config.batch_size), config.batch_size
  )
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  views = views_lib.two_views(
    key,
    batch["image"],
    batch["tokens"],
    settings=config.augment,
    masking=setup_lib.masking(setup.tokenizer),
    pixel_statistics=setup.size.family.pixels,
    with_distorted=True,
  )
  before = jax.device_get((state.params, (state.bank.image, state.bank.text)))
  packing, _ = jax_step.shortened_captions(workload, setup)
  start = (*before, jax.device_get((*views, batch["index"])))
  compiled = compilation.compile_step(
    setup_lib.create_step(setup, packing), setup.mesh, state, batch
  )
  state, report = compiled(state, batch)
  after = jax.device_get((state.params, (state.bank.image, state.bank.text)))
  metrics = {name: float(value) for name, value in report.metrics.items()}
  kept = {name: metrics[name] for name in metrics if name.startswith("loss_")}
  changes = [
    _distance(jax.tree.leaves(new), jax.tree.leaves(old))
    for new, old in zip(after, before, strict=True)
  ]
  return {
    **kept,
    "gradient_norm": metrics["gradient_norm"],
    "global_relations": metrics["global_relations"],
    "parameter_change": changes[0],
    "bank_change": changes[1],
  }, start


def _torch_step(workload: Workload, start: tuple, way: str) -> dict[str, float]:
  params, banks, (pixels, tokens, index) = start
  config = workload.config
  encoders = torch_step.make_encoders(config)
  encoders.load_params(params)
  # The learning rate of the first epoch: our optimizer counts its own steps from 0.
  optimizer = torch_step.make_optimizer(encoders, config, epoch=1)
  weights = [parameter.detach().clone() for parameter in encoders.parameters()]
  tensor = lambda array: torch.tensor(np.asarray(array))
  banks = [tensor(bank[: workload.num_pairs]).clone() for bank in banks]
  old_banks = [bank.clone() for bank in banks]
  # (B, V, ..) -> all clean views, then all distorted ones.
  flat = lambda array: tensor(np.concatenate([array[:, 0], array[:, 1]]))
  features = encoders.image(flat(pixels).permute(0, 3, 1, 2)), encoders.text(flat(tokens).long())
  terms, clean = torch_step.all_losses(*features, banks, config, way)
  sum(config.loss.weights[name] * term for name, term in terms.items()).backward()
  gradient = [parameter.grad for parameter in encoders.parameters()]
  anchors, clean = config.global_association, [feature.detach() for feature in clean]
  mined, _ = torch_association.WAYS[way][1](clean[0], banks[0], anchors.k, anchors.threshold)
  optimizer.step()
  torch_step.update_banks(banks, tensor(index).long(), clean, config, way)
  return {
    **{f"loss_{name}": term.item() for name, term in terms.items()},
    "gradient_norm": _distance(gradient, [torch.zeros(()) for _ in gradient]),
    "global_relations": len(mined) / len(index),
    "parameter_change": _distance([p.detach() for p in encoders.parameters()], weights),
    "bank_change": _distance(banks, old_banks),
  }


def _distance(first: Sequence, second: Sequence) -> float:
  """Euclidean norm of the difference of two lists of arrays."""
  squares = [
    float(np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))))
    for a, b in zip(first, second, strict=True)
  ]
  return float(np.sqrt(sum(squares)))
