"""Collectives in HLO text: one written by hand, and what the compiler makes of known programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dgia_jax import sharding
from dgia_jax.dry_run import hlo_collectives

# As a TPU's compiler writes it: a loop in a loop, started and finished operations, a fusion that
# holds a collective, arrays in tiles, sources in tables at the head.
TEXT = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/x/dgia_jax/memory_bank.py"
2 "/x/dgia_jax/models/layers.py"

FunctionNames
1 "search_shards"

FileLocations
1 {file_name_id=1 function_name_id=1 line=195 end_line=195 column=4}
2 {file_name_id=2 function_name_id=1 line=12 end_line=12 column=4}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=1}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%scatter (p: f32[64,512]) -> f32[8,512] {
  %p = f32[64,512]{1,0:T(8,128)} parameter(0)
  ROOT %rs = f32[8,512]{1,0:T(8,128)} reduce-scatter(%p), channel_id=4, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%inner_body (q: (s32[], bf16[16,32])) -> (s32[], bf16[16,32]) {
  %q = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %small = bf16[16,32]{1,0:T(8,128)(2,1)} get-tuple-element(%q), index=1
  %gather-start = (bf16[16,32]{1,0:T(8,128)(2,1)}, bf16[128,32]{1,0:T(8,128)(2,1)}) all-gather-start(%small), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, metadata={op_name="jit(step)/dot" stack_frame_id=1}
  %gather-done = bf16[128,32]{1,0:T(8,128)(2,1)} all-gather-done(%gather-start)
  ROOT %out = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) tuple(%small, %small)
}

%condition (q.1: (s32[], bf16[16,32])) -> pred[] {
  %q.1 = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

%outer_body (q.2: (s32[], bf16[16,32])) -> (s32[], bf16[16,32]) {
  %q.2 = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %inner = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) while(%q.2), condition=%condition, body=%inner_body, backend_config={"known_trip_count":{"n":"12"}}
}

%unused (x: f32[99]) -> f32[99] {
  %x = f32[99]{0:T(128)} parameter(0)
  ROOT %never = f32[99]{0:T(128)} all-reduce(%x), channel_id=9, replica_groups={}, to_apply=%add
}

ENTRY %main (p0: f32[64,512], p1: (s32[], bf16[16,32])) -> f32[] {
  %p0 = f32[64,512]{1,0:T(8,128)} parameter(0)
  %p1 = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) parameter(1)
  %fused = f32[8,512]{1,0:T(8,128)} fusion(%p0), kind=kCustom, calls=%scatter
  %loop = (s32[]{:T(128)}, bf16[16,32]{1,0:T(8,128)(2,1)}) while(%p1), condition=%condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %exchange = (s32[8,4]{1,0:T(8,128)}, s32[8,4]{1,0:T(8,128)}) all-to-all(%p0, %p0), channel_id=2, replica_groups={{0,1}}, metadata={op_name="jit(step)/shard_map/all_to_all" stack_frame_id=2}
  %both-start = (f32[64,512]{1,0:T(8,128)}, f32[3]{0:T(128)}) all-reduce-start(%p0, %p0), channel_id=3, replica_groups={}, to_apply=%add
  %both-done = (f32[64,512]{1,0:T(8,128)}, f32[3]{0:T(128)}) all-reduce-done(%both-start)
  ROOT %zero = f32[]{:T(128)} constant(0)
}
"""  # noqa: E501


def test_a_text_written_by_hand():
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
