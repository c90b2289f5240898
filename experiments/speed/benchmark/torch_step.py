"""The PyTorch implementation: the whole training step and its parts, written plainly."""

import contextlib
from typing import Any

import torch
from ml_collections import ConfigDict

from dgia_jax.method import optimizer as optimizer_lib
from dgia_jax.models import dual_encoder
from experiments.speed.benchmark import timing, torch_association, torch_views
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.torch_model import Encoders


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
    self._functions = {}

  def describe(self) -> dict[str, Any]:
    """Version and device."""
    name = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
    return {"version": f"PyTorch {torch.__version__}", "device": name}

  def prepare(self, part: str) -> dict[str, Any]:
    """Builds and warms up a part ("step/loops", "optimiser", ..); returns facts about it."""
    group, _, way = part.partition("/")
    self._functions[part] = getattr(self, f"_make_{group}")(way)
    self._functions[part]()
    self._wait()
    return {}

  def drop(self, part: str) -> None:
    """Frees a part."""
    del self._functions[part]

  def measure(self, part: str, calls: int) -> float:
    """Seconds per call, over `calls` calls between two synchronisations."""

    def run():
      for _ in range(calls):
        self._functions[part]()
      self._wait()

    return timing.timed(run) / calls

  def peak_memory(self) -> int:
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

  def _make_step(self, way):
    encoders = self._encoders()
    images, tokens, index = self._batch(self._config.batch_size)
    if "banks" not in self.__dict__:
      with torch.no_grad(), self._autocast():
        pixels = torch_views.normalize(images)
        features = encoders.image(pixels).cpu().numpy(), encoders.text(tokens).cpu().numpy()
      self.banks = self._banks(*features)

    def step():
      settings = self._config.augment
      pixels, both_tokens = torch_views.two_views(images, tokens, self._workload.mask_id, settings)
      self.optimizer.zero_grad(set_to_none=True)
      with self._autocast():
        features = encoders.image(pixels), encoders.text(both_tokens)
      terms, clean = all_losses(*features, self.banks, self._config, way)
      total = sum(self._config.loss.weights[name] * term for name, term in terms.items())
      total.backward()
      self.optimizer.step()
      update_banks(self.banks, index, clean, self._config, way)

    return step

  def _make_views(self, _):
    images, tokens, _ = self._batch(self._config.batch_size)
    settings = self._config.augment
    return lambda: torch_views.two_views(images, tokens, self._workload.mask_id, settings)

  def _make_tower(self, kind):
    encoders = self._encoders()
    images, tokens, _ = self._batch(2 * self._config.batch_size)
    inputs = torch_views.normalize(images) if kind == "image" else tokens
    tower = getattr(encoders, kind)

    def run():
      encoders.zero_grad(set_to_none=True)
      with self._autocast():
        features = tower(inputs)
      features.sum().backward()

    return run

  def _make_optimiser(self, _):
    for parameter in self._encoders().parameters():
      parameter.grad = torch.full_like(parameter, 1e-3)
    return self.optimizer.step

  def _make_association(self, way):
    return self._association(self._workload.association_batch, way)

  def _make_relations(self, way):
    return self._association(self._config.batch_size, way)

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

  def _make_product(self, _):
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
