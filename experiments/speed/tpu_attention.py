"""Forms of self-attention on a TPU, by the cycles that its compiler expects.

  pip install "jax[tpu]"
  python -m experiments.speed.tpu_attention --chips v5e:1x1,v6e:1x1 --out PATH

Compiles one layer of self-attention, projections included, forward and backward, with the sizes
of both towers of `vit_b_16` and 64 pairs in bfloat16, without a TPU. The forms are ours (two
products and a softmax, which the compiler fuses), the same with more tokens, JAX's function, and
the Pallas kernels of JAX. The compiler gives no cycles for a kernel, so the table shows those of
everything around it, and how many the kernel's own products take at least. Writes PATH.md.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import Float

from dgia_jax import cli, files
from dgia_jax.dry_run import hlo_estimates, topology
from dgia_jax.dry_run.hlo_estimates import COPIES, OTHERS, PRODUCTS
from dgia_jax.models.backend import Backend
from dgia_jax.models.transformer import Attention
from experiments.speed.tpu_estimates import flops_per_cycle

BATCH = 64
_BLOCK = 128  # tokens that a kernel takes at a time
# Products of a flash kernel, each tokens x tokens x head width: two forward, and backward three for
# the queries' gradient and four for that of keys and values, because both compute weights again.
_KERNEL_PRODUCTS = 9


class Tower(NamedTuple):
  """Sizes of a tower's attention."""

  name: str
  tokens: int
  width: int
  heads: int
  causal: bool
  padded: tuple[int, ...]  # other numbers of tokens to try


class Form(NamedTuple):
  """One way to compute it."""

  name: str
  tokens: int  # with padding
  attend: Callable[..., jax.Array] | None = None  # instead of ours
  is_kernel: bool = False


TOWERS = (
  Tower("image", 193, 768, 12, False, (200, 208, 256)),
  Tower("text", 77, 512, 8, True, (80, 96, 128)),
)


def forms(tower: Tower) -> tuple[Form, ...]:
  """What is compared; ours comes first."""
  return (
    Form("ours", tower.tokens),
    *(Form("ours, padded", tokens) for tokens in tower.padded),
    Form("`jax.nn.dot_product_attention`", tower.tokens, _dot_product),
    Form("Pallas flash kernel", tower.tokens, _flash, is_kernel=True),
    Form("Pallas splash kernel", tower.tokens, splash, is_kernel=True),
  )


def _dot_product(q, k, v, causal, num_tokens, segments):
  return jax.nn.dot_product_attention(q, k, v, is_causal=causal)


def _flash(q, k, v, causal, num_tokens, segments):
  from jax.experimental.pallas.ops.tpu import flash_attention

  q, k, v = map(_heads_first, (q, k, v))
  padding = jnp.broadcast_to(jnp.arange(q.shape[2]) >= num_tokens, (len(q), q.shape[2]))
  numbers = padding.astype(jnp.int32)
  mixed = flash_attention.flash_attention(
    q, k, v, segment_ids=flash_attention.SegmentIds(numbers, numbers),
    causal=causal, sm_scale=q.shape[-1] ** -0.5,
  )  # fmt: skip
  return jnp.swapaxes(mixed[:, :, :num_tokens], 1, 2)


def splash(
  q: Float[jax.Array, "B T A F"],
  k: Float[jax.Array, "B T A F"],
  v: Float[jax.Array, "B T A F"],
  causal: bool,
  num_tokens: int,
  segments: None = None,
  interpret: bool = False,
) -> Float[jax.Array, "B T A F"]:
  """JAX's splash attention kernel, in place of `Attention.attend`.

  Args:
    q, k, v: queries, keys and values.
    causal: whether a token sees only those before it.
    num_tokens: tokens from this one on are padding.
    segments: not supported.
    interpret: compute it without a TPU.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention

  q, k, v = map(_heads_first, (q, k, v))
  heads, length = q.shape[1:3]
  mask_of = splash_attention.CausalMask if causal else splash_attention.FullMask
  sizes = dict.fromkeys(
    ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
     "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), _BLOCK
  )  # fmt: skip
  kernel = splash_attention.make_splash_mha_single_device(
    splash_attention.MultiHeadMask([mask_of((length, length))] * heads),
    block_sizes=splash_attention.BlockSizes(**sizes),
    interpret=interpret,
  )
  padding = (jnp.arange(length) >= num_tokens).astype(jnp.int32)
  texts = splash_attention.SegmentIds(padding, padding)
  mixed = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=texts))(
    q * q.shape[-1] ** -0.5, k, v
  )
  return jnp.swapaxes(mixed[:, :, :num_tokens], 1, 2)


def _heads_first(x):
  """(B, T, A, F) to (B, A, T', F), with whole blocks of tokens."""
  return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % _BLOCK), (0, 0)))


def measure(chip: str, tower: Tower, form: Form) -> dict[str, Any]:
  """Compiles one form: {`cycles` by kind, `bytes` accessed, `megabytes` of temporaries, `seconds`}.

  Args:
    chip: the topology of one chip, such as "v5e:1x1".
    tower, form: what is compiled.
  """
  sharding = SingleDeviceSharding(topology.devices_of(chip)[0])

  def create():
    layer = Attention(
      tower.width, tower.heads, causal=tower.causal, out_std=0.01, dtype=jnp.bfloat16,
      backend=Backend(), rngs=nnx.Rngs(0),
    )  # fmt: skip
    if form.attend:
      layer.attend = form.attend
    return nnx.split(layer)

  graph, params = nnx.eval_shape(create)

  def loss(params, x):
    layer = nnx.merge(graph, params)
    return jnp.sum(layer(x, tower.tokens).astype(jnp.float32) ** 2)

  placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  x = jax.ShapeDtypeStruct((BATCH, form.tokens, tower.width), jnp.bfloat16, sharding=sharding)
  start = time.time()
  lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(jax.tree.map(placed, params), x)
  compiled = lowered.compile()
  return {
    "cycles": hlo_estimates.cycles(compiled.as_text()),
    "bytes": compiled.cost_analysis()["bytes accessed"],
    "megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    "seconds": time.time() - start,
  }


def kernel_cycles(chip: str, tower: Tower) -> float:
  """Fewest cycles for the products of a flash kernel: blocks and matrix units filled up."""
  tokens = tower.tokens + -tower.tokens % _BLOCK
  products = hlo_estimates.Product(
    rows=tokens,
    inner=tokens,
    columns=tower.width // tower.heads,
    count=_KERNEL_PRODUCTS * BATCH * tower.heads,
    op_name="",
  )
  side = topology.MATRIX_UNIT_SIDE[topology.parse(chip)[0]]
  return products.padded_flops(side) / flops_per_cycle(chip)


def table(facts: Mapping[tuple[str, Tower, Form], Mapping[str, Any]]) -> list[str]:
  """The results as Markdown lines."""
  chips = list(dict.fromkeys(chip for chip, _, _ in facts))
  lines = [
    "# Self-attention on a TPU, as the compiler expects it",
    "",
    "```",
    f"python -m experiments.speed.tpu_attention --chips {','.join(chips)} --out PATH",
    "```",
    "",
    "None of this was run. One layer, projections included, forward and backward, 64 sequences,",
    "bfloat16. Cycles are the compiler's estimates, in thousands. It gives none for a kernel: the",
    "column shows how many its products take at least.",
    "",
    "| chip | tower | form | tokens | products | copies | others | kernel, at least | all | MB of"
    " temporaries | MB read and written |",
    "|" + "---|" * 11,
  ]
  for (chip, tower, form), one in facts.items():
    cycles = one["cycles"]
    kernel = kernel_cycles(chip, tower) if form.is_kernel else 0
    cells = [
      chip,
      tower.name,
      form.name,
      form.tokens,
      *(f"{cycles[kind] / 1e3:,.0f}" for kind in (PRODUCTS, COPIES, OTHERS)),
      f"{kernel / 1e3:,.0f}" if kernel else "",
      f"{(sum(cycles.values()) + kernel) / 1e3:,.0f}",
      f"{one['megabytes']:,.0f}",
      f"{one['bytes'] / 1e6:,.0f}",
    ]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return lines


def main() -> int:
  """Command line; returns the exit code."""
  return cli.run(_run)


def _run() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--chips", default="v5e:1x1,v6e:1x1", help="topologies of one chip")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="write PATH.md")
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  facts = {}
  for chip in options.chips.split(","):
    for tower in TOWERS:
      for form in forms(tower):
        facts[chip, tower, form] = measure(chip, tower, form)
        print(chip, tower.name, form.name, form.tokens, facts[chip, tower, form], flush=True)
  options.out.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(options.out.with_suffix(".md"), "\n".join(table(facts)) + "\n")


if __name__ == "__main__":
  sys.exit(main())
