"""Collectives in HLO text: in an example, and in programs that the compiler translates."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dgia_jax import sharding
from dgia_jax.dry_run import hlo_collectives

# As the TPU compiler writes it: a loop in a loop, started and finished operations, a fusion that
# contains a collective, arrays in tiles, sources in tables at the head.
TEXT = pathlib.Path(__file__).with_name("example.hlo").read_text()


def test_the_example():
  found = {one.kind: one for one in hlo_collectives.collectives(TEXT)}
  assert sorted(found) == ["all-gather", "all-reduce", "all-to-all", "reduce-scatter"]
  gather = found["all-gather"]  # not what it takes, and not its end
  assert gather.shapes == (("bf16", (128, 32)),) and gather.bytes == 128 * 32 * 2
  assert gather.times == 3 * 12 and gather.in_loop
  assert gather.source == "/x/dgia_jax/models/layers.py:12" and gather.op_name == "jit(step)/dot"
  assert gather.groups == "{{0,1,2,3,4,5,6,7}}"
  scatter = found["reduce-scatter"]  # takes more than it gives; stands in a fusion
  assert scatter.shapes == (("f32", (64, 512)),) and scatter.bytes == 64 * 512 * 4
  assert scatter.times == 1 and not scatter.in_loop and scatter.groups == "[1,8]<=[8]"
  assert found["all-to-all"].source == "/x/dgia_jax/memory_bank.py:195"
  assert found["all-reduce"].times == 1  # never called, never counted: f32[99]
  assert found["all-reduce"].bytes == 2 * 64 * 512 * 4


COUNTER = "s32[]{:T(128)}"
LOOP = f"""\
%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %q = ({COUNTER}, f32[8]{{0:T(128)}}) parameter(0)
  %x = f32[8]{{0:T(128)}} get-tuple-element(%q), index=1
  ROOT %sum = f32[8]{{0:T(128)}} all-reduce(%x), channel_id=1, replica_groups={{}}
}}

%condition (r: (s32[], f32[8])) -> pred[] {{
  %limit = {COUNTER} constant(12)
  %r = ({COUNTER}, f32[8]{{0:T(128)}}) parameter(0)
  %counter = {COUNTER} get-tuple-element(%r), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%counter, %limit), direction=LT, metadata={{}}
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0:T(128)}} parameter(0)
  %two = {COUNTER} constant(2)
  %start = {COUNTER} copy(%two)
  %first = ({COUNTER}, f32[8]{{0:T(128)}}) tuple(%start, /*index=1*/%p)
  ROOT %loop = ({COUNTER}, f32[8]{{0:T(128)}}) while(%first), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize(
  "old, new, times",
  [
    ("", "", 10),
    ("constant(2)", "constant(0)", 12),
    ("copy(%two)", "add(%two, %two)", 1),  # who knows
    ("direction=LT", "direction=NE", 1),
    ("constant(12)", "parameter(1)", 1),
  ],
)
def test_trips_of_a_loop_are_counted_where_the_text_does_not_say(old, new, times):
  (found,) = hlo_collectives.collectives(LOOP.replace(old, new))
  assert found.times == times and found.in_loop


def test_pieces_of_one_collective_are_one():
  attributes = 'frontend_attributes={chain_id="0"}'
  text = LOOP.replace("channel_id=1, replica_groups={}", f"channel_id=1, {attributes}")
  (in_the_loop,) = hlo_collectives.collectives(text)
  assert in_the_loop.times == 10  # all of its pieces stand there
  head, start = text.split("  %two = ")
  began = (
    f"{head}  %begin = f32[8]{{0}} all-reduce(%p), channel_id=1, {attributes}\n  %two = {start}"
  )
  (found,) = hlo_collectives.collectives(began)
  assert found.times == 1 and not found.in_loop and found.bytes == 32
  other = began.replace("%begin", "%other").replace(
    "all-reduce(%p), channel_id=1", "all-reduce(%p), channel_id=2"
  )
  assert len(hlo_collectives.collectives(other)) == 2


@pytest.mark.parametrize(
  "dtype, size",
  [("pred", 20), ("u8", 20), ("s4", 10), ("bf16", 40), ("f8e4m3fn", 20), ("c64", 160)],
)
def test_bytes_of_dtypes(dtype, size):
  text = TEXT.replace("f32[99]", f"{dtype}[4,5]").replace(
    "  ROOT %zero", "  %used = f32[1]{0} fusion(%p0), kind=kLoop, calls=%unused\n  ROOT %zero"
  )
  assert size in [one.bytes for one in hlo_collectives.collectives(text)]


def compiled(function, *arguments):
  return hlo_collectives.collectives(jax.jit(function).lower(*arguments).compile().as_text())


def test_what_the_compiler_makes():
  """Programs whose traffic is known, on eight devices."""
  mesh = sharding.create_mesh()
  rows = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=sharding.bank_rows(mesh))
  whole = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=sharding.replicated(mesh))

  (gather,) = compiled(
    lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P())), rows
  )
  assert (gather.kind, gather.bytes, gather.times) == ("all-gather", 64 * 32 * 4, 1)
  (total,) = compiled(lambda x: jnp.sum(x, axis=0), rows)
  assert (total.kind, total.bytes, total.in_loop) == ("all-reduce", 32 * 4, False)

  def spread(x, weight):
    """Ten layers; the sum over devices is in the loop."""
    layer = lambda w, _: (w @ jnp.tanh(x @ w).T @ x, None)
    return jax.lax.scan(layer, weight, length=10)[0]

  looped = [one for one in compiled(spread, rows, whole) if one.in_loop]
  assert looped and {one.times for one in looped} == {10}


def test_the_source_of_an_exchange_is_named():
  mesh = sharding.create_mesh()
  exchange = jax.shard_map(
    lambda x: jax.lax.all_to_all(x, sharding.BANK_AXES, 1, 0, tiled=True),
    mesh=mesh,
    in_specs=P(sharding.BANK_AXES),
    out_specs=P(sharding.BANK_AXES),
  )
  (found,) = compiled(exchange, np.zeros((8, 16), np.float32))
  assert found.kind == "all-to-all" and found.bytes == 16 * 4
  assert "test_hlo_collectives.py:" in found.source and "all_to_all" in found.op_name
