"""Our implementation: the training step as training runs it, and its parts, each compiled alone."""

import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from dgia_jax import sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.data.prefetch import Prefetcher
from dgia_jax.data.token_ids import TokenIds
from dgia_jax.method import compilation, memory_bank, train_state
from dgia_jax.method import views as views_lib
from dgia_jax.models import dual_encoder
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import train
from dgia_jax.training.setup import TrainingSetup
from experiments.speed.benchmark import device_time, timing
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.workload import Workload

_FILL_ROWS = 8192  # bank rows written at once while a bank is filled
_STORED_IMAGES = 64


class _StoredImages(Sequence):
  """As many images as the dataset would have; a few JPEGs in memory, decoded on access."""

  def __init__(self, image_size, count):
    random, (height, width) = np.random.default_rng(0), image_size
    self._count, self._encoded = count, []
    for _ in range(min(_STORED_IMAGES, count)):
      coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
      file = io.BytesIO()
      coarse.resize((width, height)).save(file, "JPEG")
      self._encoded.append(file.getvalue())

  def __len__(self):
    return self._count

  def __getitem__(self, image):
    return np.asarray(Image.open(io.BytesIO(self._encoded[image % len(self._encoded)])))


def make_setup(workload: Workload) -> TrainingSetup:
  """The setup of the workload's config on made-up pairs."""
  config = workload.config
  image_of_pair_N = np.arange(workload.num_pairs, dtype=np.int32) // 2
  num_images = int(image_of_pair_N[-1]) + 1
  pairs = PairTable(
    images=_StoredImages(config.dataset.image_size, num_images),
    image_of_pair_N=image_of_pair_N,
    captions=[""] * workload.num_pairs,
    person_of_image_M=np.arange(num_images),
  )
  vocabulary = TokenIds(config.tokenizer.vocab_size)
  mesh = sharding.create_mesh(**config.mesh)
  return setup_lib.assemble(config, mesh, {"train": pairs}, vocabulary)


def fill_bank(bank: memory_bank.Bank, rows: Any, mesh: jax.sharding.Mesh) -> memory_bank.Bank:
  """Writes every pair's row: `rows` is ((N, D) images, (N, D) texts), in host memory."""
  write = jax.jit(functools.partial(memory_bank.update, mesh=mesh), donate_argnums=0)
  for start in range(0, len(rows[0]), _FILL_ROWS):
    index = np.arange(start, min(start + _FILL_ROWS, len(rows[0])), dtype=np.int32)
    part = [row[index] for row in rows]
    bank = write(bank, index, index // 2, *part, np.ones(len(index), np.float32))
  return bank


def make_state(workload: Workload, setup: TrainingSetup) -> train_state.TrainState:
  """A state in the first epoch with all losses, its bank filled around the batch's features."""
  state = train_state.create(setup.mesh, setup_lib.init_state(setup))
  size = workload.config.batch_size
  batch = sharding.global_batch(setup.mesh, workload_lib.batch(workload, size), size)

  @jax.jit
  def encode(params, batch):
    key = jax.random.key(0)
    pixels, tokens = views_lib.two_views(
      key,
      batch["image"],
      batch["tokens"],
      settings=setup.config.augment,
      masking=setup_lib.masking(setup.tokenizer),
      pixel_statistics=setup.size.family.pixels,
      distorted=True,
    )
    return setup.encode(params, pixels[:, 0], tokens[:, 0])

  features = jax.device_get(encode(state.params, batch))
  rows = [workload_lib.bank(feature, workload.num_pairs) for feature in features]
  return state.replace(
    step=_first_step(workload, setup.mesh), bank=fill_bank(state.bank, rows, setup.mesh)
  )


def _first_step(workload, mesh):
  step = jnp.int32((workload.epoch - 1) * workload.steps_per_epoch)
  return jax.device_put(step, sharding.replicated(mesh))


class JaxImplementation:
  """Times the step and its parts.

  Args:
    workload: a `workload.Workload`.
    threads: cores of this process, which JAX respects.
  """

  def __init__(self, workload, threads):
    del threads
    self._workload, self._config = workload, workload.config
    self._setup = make_setup(workload)
    self._functions = {}

  def describe(self) -> dict[str, Any]:
    """Version and devices."""
    kind = jax.devices()[0].device_kind
    return {
      "version": f"JAX {jax.__version__}",
      "device": kind,
      "devices": jax.device_count(),
      "platform": jax.default_backend(),
    }

  def prepare(self, part: str) -> dict[str, Any]:
    """Builds and warms up a part; returns facts such as its compile time."""
    group, _, kind = part.partition("/")
    make = getattr(self, f"_make_{group}")
    self._functions[part], facts = make(kind)
    self._functions[part]()
    return facts

  def drop(self, part: str) -> None:
    """Frees a part."""
    del self._functions[part]

  def measure(self, part: str, calls: int) -> float:
    """Seconds per call, over `calls` calls between two synchronisations."""
    function = self._functions[part]

    def run():
      results = [function(wait=False) for _ in range(calls)]
      jax.block_until_ready(results[-1])

    return timing.timed(run) / calls

  def profile(self, part: str, calls: int) -> dict[str, float]:
    """Seconds per call by kind of kernel, see `device_time.by_kind`; {} without an accelerator."""
    if jax.default_backend() == "cpu":  # whose trace has no kernels, and whose steps take long
      return {}
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        self.measure(part, calls)
      kernels = device_time.read(folder)
    return device_time.by_kind(kernels, calls) if kernels else {}

  def peak_memory(self) -> int:
    """Peak bytes of a device where it reports them, otherwise of this process."""
    devices = [(device.memory_stats() or {}) for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in devices if "peak_bytes_in_use" in stats]
    return max(peaks) if peaks else timing.peak_memory()

  def input_wait(self, steps: int) -> dict[str, float]:
    """Trains `steps` steps on batches of the input pipeline, which decodes JPEGs.

    Returns:
      {"seconds": per step, "wait": seconds per step in which the step waited for its batch}.
    """
    random, setup, size = np.random.default_rng(0), self._setup, self._config.batch_size
    few = workload_lib.tokens(self._workload, 256, random)
    tokens_NxL = few[random.integers(0, len(few), self._workload.num_pairs)]

    def on_device():
      batches = batches_lib.train_batches(
        setup.train_pairs,
        tokens_NxL,
        batch_size=size,
        seed=0,
        num_epochs=1 + -(-steps // self._workload.steps_per_epoch),
        workers=self._config.dataset.workers,
        rows=sharding.batch_rows(setup.mesh, size),
      )
      with contextlib.closing(batches):
        for batch in batches:
          yield sharding.global_batch(setup.mesh, batch, size)

    # As in training: the next batches are on their way while a step is computed, and the host runs
    # one step ahead of the device.
    step, waited = self._functions["step"], 0.0
    with contextlib.closing(Prefetcher(on_device(), train.PREFETCH)) as batches:
      report = step(batch=next(batches))
      start = time.perf_counter()
      for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        before, report = report, step(batch=batch, wait=False)
        jax.block_until_ready(before)
      jax.block_until_ready(report)
      seconds = time.perf_counter() - start
    return {"seconds": seconds / steps, "wait": waited / steps}

  def _batch(self, size):
    return sharding.global_batch(self._setup.mesh, workload_lib.batch(self._workload, size), size)

  def _make_step(self, _):
    setup, batch = self._setup, self._batch(self._config.batch_size)
    state = [make_state(self._workload, setup)]
    start = time.perf_counter()
    compiled = compilation.compile_step(setup_lib.create_step(setup), setup.mesh, state[0], batch)
    facts = {"compile": time.perf_counter() - start, **memory_facts(compiled)}

    def step(wait=True, batch=batch):
      state[0], report = compiled(state[0], batch)
      return jax.block_until_ready(report.metrics) if wait else report.metrics

    facts |= {name: float(value) for name, value in step().items() if "relations" in name}
    return step, facts

  def _make_association(self, _):
    return self._association(self._workload.association_batch)

  def _make_relations(self, _):
    return self._association(self._config.batch_size)

  def _association(self, size):
    """The step itself with features in the place of parameters, and no encoders."""
    workload, mesh = self._workload, self._setup.mesh
    dim = dual_encoder.SIZES[self._config.model.name].feature_width
    views = [workload_lib.features(size, dim, seed) for seed in (0, 1)]
    # (2B, D): the views of a pair are neighbours, as `views.encode_views` has them.
    interleave = lambda modality: np.stack([view[modality] for view in views], 1).reshape(-1, dim)
    features = {"image": interleave(0), "text": interleave(1)}
    rows = [workload_lib.bank(feature, workload.num_pairs) for feature in views[0]]
    init = train_state.initializer(
      lambda: jax.tree.map(jnp.asarray, features), optax.identity(),
      num_pairs=workload.num_pairs, feature_dim=dim,
    )  # fmt: skip
    state = train_state.create(mesh, init)
    state = [
      state.replace(step=_first_step(workload, mesh), bank=fill_bank(state.bank, rows, mesh))
    ]
    step = functools.partial(
      setup_lib.create_step(self._setup),
      encode=lambda params, pixels, _: tuple(params[kind][: len(pixels)] for kind in features),
      optimizer=optax.set_to_zero(),
    )
    batch = self._batch(size)
    compiled = compilation.compile_step(step, mesh, state[0], batch)

    def run(wait=True):
      state[0], report = compiled(state[0], batch)
      return jax.block_until_ready(report.metrics) if wait else report.metrics

    facts = {name: float(value) for name, value in run().items() if "relations" in name}
    return run, facts | memory_facts(compiled)

  def _make_views(self, _):
    batch = self._batch(self._config.batch_size)
    views = jax.jit(
      lambda key, batch: views_lib.two_views(
        key,
        batch["image"],
        batch["tokens"],
        settings=self._config.augment,
        masking=setup_lib.masking(self._setup.tokenizer),
        pixel_statistics=self._setup.size.family.pixels,
        distorted=True,
      )
    )
    return _caller(views, jax.random.key(0), batch), {}

  def _make_tower(self, kind):
    batch = self._batch(2 * self._config.batch_size)
    params = self._params()
    scaled = jax.jit(lambda images: pixels_lib.normalize_pixels(images))
    inputs = scaled(batch["image"]) if kind == "image" else batch["tokens"]

    def total(tower_params, others, inputs):
      model = nnx.merge(self._setup.graphdef, {**others, kind: tower_params})
      return jnp.sum({"image": model.encode_image, "text": model.encode_text}[kind](inputs))

    others = {name: tree for name, tree in params.items() if name != kind}
    return _caller(jax.jit(jax.grad(total)), params[kind], others, inputs), {}

  def _make_optimiser(self, _):
    optimizer = self._setup.optimizer
    state = train_state.create(self._setup.mesh, setup_lib.init_state(self._setup))
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), state.params)
    state = [(state.params, state.opt_state)]
    layouts = jax.tree.map(lambda leaf: leaf.sharding, state[0])

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=layouts)
    def apply(state, gradient):
      params, opt_state = state
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    def run(wait=True):
      state[0] = apply(state[0], gradient)
      return jax.block_until_ready(state[0]) if wait else state[0]

    return run, {}

  def _make_product(self, _):
    a = jnp.ones((workload_lib.PRODUCT_SIDE,) * 2, jnp.dtype(self._config.model.dtype))
    return _caller(jax.jit(jnp.matmul), a, a), {}

  def _params(self):
    return train_state.create(self._setup.mesh, setup_lib.init_state(self._setup)).params


def _caller(function, *arguments):
  def run(wait=True):
    result = function(*arguments)
    return jax.block_until_ready(result) if wait else result

  return run


def memory_facts(compiled: Any) -> dict[str, Any]:
  """What the compiler says about memory: {"arguments", "temporaries"} in bytes; {} if nothing."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return {}
  return {
    "arguments": analysis.argument_size_in_bytes,
    "temporaries": analysis.temp_size_in_bytes,
  }
