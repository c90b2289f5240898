"""Our implementation: the training step as training runs it, and its parts, each compiled alone."""

import contextlib
import functools
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dgia_jax import sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.data.prefetch import Prefetcher
from dgia_jax.data.token_ids import TokenIds
from dgia_jax.method import compilation, memory_bank, train_state
from dgia_jax.method import views as views_lib
from dgia_jax.models import dual_encoder
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.models.caption_packing import Packing
from dgia_jax.training import packing_plan, train
from dgia_jax.training import setup as setup_lib
from dgia_jax.training.setup import TrainingSetup
from experiments.speed.benchmark import device_time, timing
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.made_up_images import StoredImages
from experiments.speed.benchmark.workload import Task, Workload

ALL_TOKENS = "all tokens"  # way of a step: last block of all tokens, captions at full length
_FILL_ROWS = 8192  # bank rows written at once while a bank is filled


def make_setup(workload: Workload) -> TrainingSetup:
  """The setup of the workload's config on made-up pairs."""
  config = workload.config
  image_of_pair_N = np.arange(workload.num_pairs, dtype=np.int32) // 2
  num_images = int(image_of_pair_N[-1]) + 1
  pairs = PairTable(
    images=StoredImages(config.dataset.image_size, num_images),
    image_of_pair_N=image_of_pair_N,
    captions=[""] * workload.num_pairs,
    person_of_image_M=np.arange(num_images),
  )
  vocabulary = TokenIds(config.tokenizer.vocab_size)
  mesh = sharding.create_mesh(**config.mesh)
  return setup_lib.assemble(config, mesh, {"train": pairs}, vocabulary)


def shortened_captions(workload: Workload, setup: TrainingSetup) -> tuple[Packing | None, float]:
  """How training encodes the workload's captions with little padding.

  Returns:
    For `setup.create_step`; and how many tokens are computed for each caption, on average.
  """
  packing = packing_plan.choose_packing(setup, workload_lib.captions(workload))
  if not packing:
    return None, float(workload.config.tokenizer.context_length)
  return packing, packing.tokens_per_caption


def fill_bank(bank: memory_bank.Bank, rows: Any, mesh: jax.sharding.Mesh) -> memory_bank.Bank:
  """Writes every pair's row: `rows` is ((N, D) images, (N, D) texts), in host memory."""
  write = jax.jit(functools.partial(memory_bank.update, mesh=mesh), donate_argnums=0)
  for start in range(0, len(rows[0]), _FILL_ROWS):
    index = np.arange(start, min(start + _FILL_ROWS, len(rows[0])), dtype=np.int32)
    part = [row[index] for row in rows]
    bank = write(bank, index, index // 2, *part, np.ones(len(index), np.float32))
  return bank


def make_state(
  workload: Workload, setup: TrainingSetup, rows: Any = None
) -> train_state.TrainState:
  """A state in the first epoch with all losses.

  Args:
    workload, setup: of the step.
    rows: of both banks, see `fill_bank`; None: `bank_rows` of the state's own features.
  """
  state = train_state.create(setup.mesh, setup_lib.state_initializer(setup))
  if rows is None:
    rows = bank_rows(workload, setup, state)
  return state.replace(
    step=_first_step(workload, setup.mesh), bank=fill_bank(state.bank, rows, setup.mesh)
  )


def bank_rows(
  workload: Workload, setup: TrainingSetup, state: train_state.TrainState
) -> list[np.ndarray]:
  """Rows of the image bank and of the text bank, around the features of the batch."""
  size = workload.config.batch_size
  batch = sharding.global_batch(setup.mesh, workload_lib.batch(workload, size), size)

  @jax.jit
  def encode(params, batch):
    pixels, tokens = _two_views(setup, jax.random.key(0), batch)
    return setup.encode(params, pixels[:, 0], tokens[:, 0])

  features = jax.device_get(encode(state.params, batch))
  return [workload_lib.bank(feature, workload.num_pairs) for feature in features]


def _two_views(setup, key, batch):
  return views_lib.two_views(
    key,
    batch["image"],
    batch["tokens"],
    settings=setup.config.augment,
    masking=setup_lib.masking(setup.tokenizer),
    pixel_statistics=setup.size.family.pixels,
    with_distorted=True,
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

  def prepare(self, task: Task) -> dict[str, Any]:
    """Builds and warms up a part; returns facts such as its compile time."""
    group, _, kind = task.part.partition("/")
    make = getattr(self, f"_make_{group}")
    argument = task if group == "step" else kind
    self._functions[task], facts = make(argument)
    self._functions[task]()
    return facts

  def drop(self, task: Task) -> None:
    """Frees a part."""
    self._functions.pop(task, None)

  def measure(self, task: Task, calls: int) -> float:
    """Seconds per call, over `calls` calls between two synchronisations."""
    function = self._functions[task]

    def run():
      results = [function(wait=False) for _ in range(calls)]
      jax.block_until_ready(results[-1])

    return timing.timed(run) / calls

  def profile(self, task: Task, calls: int) -> dict[str, Any]:
    """Where the device's time goes; {} without an accelerator.

    Returns:
      {"device_time": see `device_time.by_kind`, "kernels": see `device_time.by_kernel`}.
    """
    if jax.default_backend() == "cpu":  # whose trace has no kernels, and whose steps take long
      return {}
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        self.measure(task, calls)
      kernels = device_time.read(folder)
    if not kernels:
      return {}
    return {
      "device_time": device_time.by_kind(kernels, calls),
      "kernels": device_time.by_kernel(kernels, calls),
    }

  def input_wait(self, steps: int) -> dict[str, float]:
    """Trains `steps` steps on batches of the input pipeline, which decodes JPEGs.

    Returns:
      {"seconds": per step, "wait": seconds per step in which the step waited for its batch}.
    """
    setup, size = self._setup, self._config.batch_size

    def on_device():
      batches = batches_lib.train_batches(
        setup.train_pairs,
        workload_lib.captions(self._workload),
        batch_size=size,
        seed=self._config.seed,
        num_epochs=1 + -(-steps // self._workload.steps_per_epoch),
        workers=self._config.dataset.workers,
        rows=sharding.batch_rows(setup.mesh, size),
      )
      with contextlib.closing(batches):
        for batch in batches:
          yield sharding.global_batch(setup.mesh, batch, size)

    # As in training: the next batches are on their way while a step is computed, and the host runs
    # one step ahead of the device.
    step, waited = self._functions[Task("step")], 0.0
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

  def _make_step(self, task):
    workload = self._workload.replace(batch_size=task.batch_size or self._config.batch_size)
    if task.way == ALL_TOKENS:
      workload = workload.replace(model__full_last_block=True)
    setup, size = make_setup(workload), workload.config.batch_size
    batch = sharding.global_batch(setup.mesh, workload_lib.batch(workload, size), size)
    state = [make_state(workload, setup, self._rows)]
    if task.way == ALL_TOKENS:
      step, text_tokens = setup_lib.create_step(setup), workload.config.tokenizer.context_length
    else:
      packing, text_tokens = shortened_captions(workload, setup)
      step = setup_lib.create_step(setup, packing)
    start = time.perf_counter()
    compiled = compilation.compile_step(step, setup.mesh, state[0], batch)
    facts = {
      "compile": time.perf_counter() - start,
      "text_tokens": text_tokens,
      **memory_facts(compiled),
    }

    def run(wait=True, batch=batch):
      state[0], report = compiled(state[0], batch)
      return jax.block_until_ready(report.metrics) if wait else report.metrics

    metrics = {name: float(value) for name, value in run().items()}
    if not all(map(np.isfinite, metrics.values())):
      raise FloatingPointError(f"the step is not finite: {metrics}")
    facts |= {name: value for name, value in metrics.items() if "relations" in name}
    return run, facts | {"peak_memory": self._peak_memory(facts)}

  @functools.cached_property
  def _rows(self):
    """Rows of both banks, the same for all steps: around the features of the config's batch."""
    state = train_state.create(self._setup.mesh, setup_lib.state_initializer(self._setup))
    return bank_rows(self._workload, self._setup, state)

  @staticmethod
  def _peak_memory(facts):
    """Bytes: of this process on a CPU, else of a device, as the compiler planned them."""
    if jax.default_backend() == "cpu" or not facts.get("temporaries"):
      return timing.peak_memory()
    return facts["arguments"] + facts["temporaries"]

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
    views = jax.jit(functools.partial(_two_views, self._setup))
    return _caller(views, jax.random.key(0), batch), {}

  def _make_tower(self, kind):
    """Forward and backward pass for two views of the batch, as the step runs it."""
    setup, params = self._setup, self._params()
    batch = self._batch(self._config.batch_size)
    packing, _ = shortened_captions(self._workload, setup)

    @jax.jit
    def inputs(batch):
      pixels = pixels_lib.normalize_pixels(batch["image"])
      return tuple(jnp.repeat(array, 2, axis=0) for array in (pixels, batch["tokens"]))

    def total(tower_params, others, pixels, tokens):
      features = setup.encode({**others, kind: tower_params}, pixels, tokens, packing=packing)
      return jnp.sum(features[("image", "text").index(kind)])  # the other is not computed

    others = {name: tree for name, tree in params.items() if name != kind}
    return _caller(jax.jit(jax.grad(total)), params[kind], others, *inputs(batch)), {}

  def _make_optimiser(self, _):
    optimizer = self._setup.optimizer
    state = train_state.create(self._setup.mesh, setup_lib.state_initializer(self._setup))
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
    return train_state.create(self._setup.mesh, setup_lib.state_initializer(self._setup)).params


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
