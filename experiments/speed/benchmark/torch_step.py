"""The PyTorch implementation: the whole training step and its parts, eager or compiled.

The way "compiled" associates as "vectorised" does, and compiles both towers with `torch.compile`.
"""

import contextlib
import gc
import time
from typing import Any

import torch
from ml_collections import ConfigDict

from dgia_jax.method import optimizer as optimizer_lib
from dgia_jax.models import dual_encoder
from experiments.speed.benchmark import timing, torch_association, torch_views
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.torch_model import Encoders
from experiments.speed.benchmark.workload import Task

COMPILED = "compiled"
_LARGEST_DIFFERENCE = 0.05  # of features, compiled and eager, as a share of their size; bfloat16


def make_encoders(config: ConfigDict) -> Encoders:
  """The encoders of a config, with random weights."""
  return Encoders(
    dual_encoder.SIZES[config.model.name],
    config.dataset.image_size,
    config.tokenizer.context_length,
    config.tokenizer.vocab_size,
  )


def make_optimizer(encoders: Encoders, config: ConfigDict, epoch: int) -> torch.optim.Optimizer:
  """The recipe's Adam at the rate of an epoch (from 1); PyTorch's fused kernel, its fastest."""
  settings = config.optimizer
  rate = float(
    optimizer_lib.learning_rate(
      epoch - 1, config.num_epochs, settings.learning_rate, settings.warmup_epochs
    )
  )
  named = list(encoders.named_parameters())
  biases = [parameter for name, parameter in named if "bias" in name]
  others = [parameter for name, parameter in named if "bias" not in name]
  kind = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
  return kind(
    [
      {"params": others, "lr": rate, "weight_decay": settings.weight_decay},
      {"params": biases, "lr": rate * settings.bias_lr_multiplier, "weight_decay": 0.0},
    ],
    betas=tuple(settings.betas),
    eps=settings.epsilon,
    fused=True,
  )


class TorchImplementation:
  """Times the step and its parts; on the GPU where there is one.

  Args:
    workload: a `workload.Workload`.
    threads: of the processor.
  """

  def __init__(self, workload, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    self._workload, self._config = workload, workload.config
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self._bfloat16 = self._config.model.dtype == "bfloat16"
    self._functions, self._compiled = {}, ()
    if self._device.type == "cuda":
      torch.set_float32_matmul_precision("high")  # TensorFloat-32 wherever autocast leaves float32

  def describe(self) -> dict[str, Any]:
    """Version and device."""
    name = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
    return {"version": f"PyTorch {torch.__version__}", "device": name}

  def prepare(self, task: Task) -> dict[str, Any]:
    """Builds and warms up a part; returns facts such as its time to compile."""
    gc.collect()
    if self._device.type == "cuda":
      torch.cuda.empty_cache()  # for the other process
      torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
      function = self._make(task)
      for _ in range(2):  # the optimiser creates its moments in the first step
        function()
        self._wait()
    finally:
      if "encoders" in self.__dict__:
        self.encoders.zero_grad(set_to_none=True)
    self._functions[task] = function
    if task.part != "step":
      return {}
    facts = {"compile": time.perf_counter() - start} if task.way == COMPILED else {}
    return facts | {"peak_memory": self._peak_memory()}

  def drop(self, task: Task) -> None:
    """Frees a part."""
    self._functions.pop(task, None)
    gc.collect()
    if self._device.type == "cuda":
      torch.cuda.empty_cache()

  def measure(self, task: Task, calls: int) -> float:
    """Seconds per call, over `calls` calls between two synchronisations."""

    def run():
      for _ in range(calls):
        self._functions[task]()
      self._wait()

    return timing.timed(run) / calls

  def _make(self, task):
    group, _, kind = task.part.partition("/")
    association = "loops" if task.way == "loops" else "vectorised"
    if group == "step":
      return self._step(task.way, association, task.batch_size or self._config.batch_size)
    if group == "tower":
      return self._tower(kind, task.way)
    if group in ("association", "relations"):
      of_config = group == "relations"
      size = self._config.batch_size if of_config else self._workload.association_batch
      return self._association(size, association)
    return getattr(self, f"_{group}")()

  def _peak_memory(self):
    """Bytes: of the GPU, else of this process."""
    if self._device.type == "cuda":
      return torch.cuda.max_memory_allocated()
    return timing.peak_memory()

  def _wait(self):
    if self._device.type == "cuda":
      torch.cuda.synchronize()

  def _autocast(self):
    if not self._bfloat16:
      return contextlib.nullcontext()
    return torch.autocast(self._device.type, dtype=torch.bfloat16)

  def _batch(self, size):
    arrays = workload_lib.batch(self._workload, size)
    to = lambda array: torch.from_numpy(array).to(self._device)
    images = to(arrays["image"]).permute(0, 3, 1, 2).contiguous()
    return images, to(arrays["tokens"]).long(), to(arrays["index"]).long()

  def _banks(self, images, texts):
    make = lambda features: workload_lib.bank(features, self._workload.num_pairs)
    return tuple(torch.from_numpy(make(rows)).to(self._device) for rows in (images, texts))

  def _encoders(self):
    if "encoders" not in self.__dict__:
      self.encoders = make_encoders(self._config).to(self._device)
      self.optimizer = make_optimizer(self.encoders, self._config, self._workload.epoch)
    return self.encoders

  def _towers(self, way):
    """(pixels -> features, tokens -> features)."""
    encoders = self._encoders()
    if way != COMPILED:
      return encoders.image, encoders.text
    if not self._compiled:
      # One program for each size of batch: fixed sizes are faster.
      self._compiled = tuple(
        torch.compile(tower, dynamic=False) for tower in (encoders.image, encoders.text)
      )
    return self._compiled

  def _step(self, way, association, batch_size):
    image_tower, text_tower = self._towers(way)
    images, tokens, index = self._batch(batch_size)
    with torch.no_grad(), self._autocast():
      pixels = torch_views.normalize(images)
      features = self.encoders.image(pixels), self.encoders.text(tokens)
    banks = self._banks(*(feature.cpu().numpy() for feature in features))
    if way == COMPILED:
      self._check_compiled(images, tokens)

    def step():
      settings = self._config.augment
      pixels, both_tokens = torch_views.two_views(images, tokens, self._workload.mask_id, settings)
      self.optimizer.zero_grad(set_to_none=True)
      with self._autocast():
        features = image_tower(pixels), text_tower(both_tokens)
      terms, clean = all_losses(*features, banks, self._config, association)
      total = sum(self._config.loss.weights[name] * term for name, term in terms.items())
      total.backward()
      self.optimizer.step()
      update_banks(banks, index, clean, self._config, association)

    return step

  def _check_compiled(self, images, tokens):
    """Raises ArithmeticError where compiled towers give other features than eager ones."""
    inputs = torch.cat([torch_views.normalize(images)] * 2), torch.cat([tokens] * 2)
    eager = self.encoders.image, self.encoders.text
    for number, values in enumerate(inputs):
      with self._autocast():
        compiled = self._compiled[number](values).detach()
        with torch.no_grad():
          expected = eager[number](values)
      difference = ((compiled - expected).norm() / expected.norm()).item()
      if not difference < _LARGEST_DIFFERENCE:
        raise ArithmeticError(f"compiled features differ from eager ones by {difference:.2g}")

  def _views(self):
    images, tokens, _ = self._batch(self._config.batch_size)
    settings = self._config.augment
    return lambda: torch_views.two_views(images, tokens, self._workload.mask_id, settings)

  def _tower(self, kind, way):
    """Forward and backward pass for two views of the batch."""
    tower = self._towers(way)[("image", "text").index(kind)]
    images, tokens, _ = self._batch(self._config.batch_size)
    inputs = torch.cat([torch_views.normalize(images) if kind == "image" else tokens] * 2)

    def run():
      self.encoders.zero_grad(set_to_none=True)
      with self._autocast():
        features = tower(inputs)
      features.sum().backward()

    return run

  def _optimiser(self):
    parameters = list(self._encoders().parameters())
    gradients = [torch.full_like(parameter, 1e-3) for parameter in parameters]

    def run():
      for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
      self.optimizer.step()

    return run

  def _association(self, size, way):
    dim = dual_encoder.SIZES[self._config.model.name].feature_width
    _, _, index = self._batch(size)
    views = [workload_lib.features(size, dim, seed) for seed in (0, 1)]
    banks = self._banks(*views[0])
    leaf = lambda array: torch.from_numpy(array).to(self._device).requires_grad_()
    clean, distorted = (tuple(map(leaf, view)) for view in views)

    def run():
      for feature in (*clean, *distorted):
        feature.grad = None
      terms = torch_association.losses(clean, distorted, *banks, self._config, way)
      sum(self._config.loss.weights[name] * term for name, term in terms.items()).backward()
      update_banks(banks, index, clean, self._config, way)

    return run

  def _product(self):
    dtype = torch.bfloat16 if self._bfloat16 else torch.float32
    a = torch.ones((workload_lib.PRODUCT_SIDE,) * 2, dtype=dtype, device=self._device)
    return lambda: a @ a


def all_losses(
  images: torch.Tensor, texts: torch.Tensor, banks: Any, config: ConfigDict, way: str
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
  """Losses of the features of all clean, then all distorted views; and the clean features."""
  size = len(images) // 2
  clean, distorted = (images[:size], texts[:size]), (images[size:], texts[size:])
  return torch_association.losses(clean, distorted, *banks, config, way), clean


def update_banks(banks: Any, index: torch.Tensor, clean: Any, config: ConfigDict, way: str) -> None:
  """Both banks' rows of the batch, in place."""
  for bank, features in zip(banks, clean, strict=True):
    torch_association.WAYS[way][2](bank, index, features.detach(), config.bank.update_rate)
