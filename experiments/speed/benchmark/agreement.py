"""Do the contenders compute the same? One step each from the same weights, views and banks."""

import dataclasses
import os

import jax
import numpy as np
import torch

from dgia_jax import sharding
from dgia_jax.method import compilation
from dgia_jax.method import views as views_lib
from dgia_jax.training import setup
from experiments.speed.benchmark import jax_step, torch_association, torch_step
from experiments.speed.benchmark import problem as problem_lib

_PAIRS = 8  # the batch is cut to so many pairs: it is run in float32, and once


class Agreement:
  """`compare` as a contender's process calls it."""

  def __init__(self, problem, threads):
    torch.set_num_threads(threads)
    # In full float32 Triton's products take a GPU's compiler minutes each to try out.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()
    self._problem = problem

  def compare(self):
    """See `compare`."""
    return compare(self._problem)


def compare(problem):
  """Runs one training step of every contender in float32 on the same numbers.

  Args:
    problem: a `problem.Problem`.

  Returns:
    {contender: {"loss_itc", .., "gradient_norm", "parameter_change", "bank_change",
    "global_relations"}, "largest_difference": relative, over all of these}.
  """
  config = problem.config
  config.model.dtype = "float32"
  config.batch_size = min(config.batch_size, _PAIRS)
  problem = dataclasses.replace(problem, fields=config.to_dict())
  with jax.default_matmul_precision("highest"):
    ours, start = _our_step(problem)
  found = {"ours": ours}
  for way in torch_association.WAYS:
    found[f"torch {way}"] = _torch_step(problem, start, way)
  difference = max(
    abs(theirs[name] - value) / max(abs(value), 1e-6)
    for name, value in ours.items()
    for theirs in found.values()
  )
  return {**found, "largest_difference": difference}


def _our_step(problem):
  """What our step did, and all it started from, on the host."""
  run = jax_step.make_run(problem)
  config, state = run.config, jax_step.make_state(problem, run)
  batch = sharding.global_batch(
    run.mesh, problem_lib.batch(problem, config.batch_size), config.batch_size
  )
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  views = views_lib.two_views(
    key,
    batch["image"],
    batch["tokens"],
    settings=config.augment,
    mask_id=problem.mask_id,
    distorted=True,
  )
  before = jax.device_get((state.params, (state.bank.image, state.bank.text)))
  start = (*before, jax.device_get((*views, batch["index"])))
  compiled = compilation.compile_step(setup.create_step(run), run.mesh, state, batch)
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


def _torch_step(problem, start, way):
  params, banks, (pixels, tokens, index) = start
  config = problem.config
  encoders = torch_step.make_encoders(config)
  encoders.load_params(params)
  # At the rate of the first epoch, since our optimiser counts its own steps from 0.
  optimizer = torch_step.make_optimizer(encoders, config, epoch=1)
  weights = [parameter.detach().clone() for parameter in encoders.parameters()]
  tensor = lambda array: torch.tensor(np.asarray(array))
  banks = [tensor(bank[: problem.num_pairs]).clone() for bank in banks]
  old_banks = [bank.clone() for bank in banks]
  # (B, V, ..) -> all clean views, then all distorted ones.
  flat = lambda array: tensor(np.concatenate([array[:, 0], array[:, 1]]))
  features = encoders.image(flat(pixels).permute(0, 3, 1, 2)), encoders.text(flat(tokens).long())
  terms, clean = torch_step.all_losses(*features, banks, config, way)
  sum(config.loss.weights[name] * term for name, term in terms.items()).backward()
  gradient = [parameter.grad for parameter in encoders.parameters()]
  anchors, clean = config.global_association, [feature.detach() for feature in clean]
  mined, _ = torch_association.WAYS[way][1](
    clean[0], banks[0], anchors.k, anchors.threshold, anchors.soft_scale
  )
  optimizer.step()
  torch_step.update_banks(banks, tensor(index).long(), clean, config, way)
  return {
    **{f"loss_{name}": term.item() for name, term in terms.items()},
    "gradient_norm": _distance(gradient, [torch.zeros(()) for _ in gradient]),
    "global_relations": len(mined) / len(index),
    "parameter_change": _distance([p.detach() for p in encoders.parameters()], weights),
    "bank_change": _distance(banks, old_banks),
  }


def _distance(ours, theirs):
  """Norm of the difference of two lists of arrays."""
  squares = [
    float(np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))))
    for a, b in zip(ours, theirs, strict=True)
  ]
  return float(np.sqrt(sum(squares)))
