"""Cycles and padded products, read from text as the TPU compiler writes it."""

import pytest

from dgia_jax.dry_run import hlo_estimates
from dgia_jax.dry_run.hlo_estimates import COPIES, OTHERS, PRODUCTS, Product

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d","is_mask":false}}'
# A loop that runs 11 times with a fused product, and outside of it a product for each of 128
# sequences and 12 heads, written as a convolution whose window moves over both.
TEXT = f"""\
%fused (a: bf16[128,193,768], b: bf16[768,3072]) -> bf16[128,193,3072] {{
  %a = bf16[128,193,768]{{2,0,1:T(8,128)(2,1)}} parameter(0)
  %b = bf16[768,3072]{{1,0:T(8,128)(2,1)}} parameter(1)
  %c = bf16[1,768,3072]{{2,1,0}} bitcast(%b)
  ROOT %dot = bf16[128,193,3072]{{2,0,1:T(8,128)(2,1)}} convolution(%a, %c), window={{size=1}}, \
dim_labels=b0f_0io->b0f, metadata={{op_name="jit(step)/up"}}
}}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %q = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%q), index=0
  %x = bf16[128,193,768]{{2,0,1:T(8,128)(2,1)}} constant(0)
  %w = bf16[768,3072]{{1,0:T(8,128)(2,1)}} constant(0)
  %up = bf16[128,193,3072]{{2,0,1:T(8,128)(2,1)}} fusion(%x, %w), kind=kOutput, calls=%fused, \
{CYCLES % 1000}
  %moved = bf16[128,193,768]{{2,1,0:T(8,128)(2,1)}} copy(%x), {CYCLES % 30}
  ROOT %next = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) tuple(%i, %q)
}}

%condition (p: (s32[], f32[8])) -> pred[] {{
  %p = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  ROOT %less = pred[]{{:T(512)}} constant(true)
}}

ENTRY %main (k: bf16[128,12,193,64]) -> f32[128,12,193,193] {{
  %k = bf16[128,12,193,64]{{3,2,1,0:T(8,128)(2,1)}} parameter(0)
  %init = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) constant(0)
  %loop = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) while(%init), condition=%condition, body=%body, \
backend_config={{"known_trip_count":{{"n":"11"}}}}
  %gelu = bf16[128,193,3072]{{2,0,1:T(8,128)(2,1)}} add(%k, %k), {CYCLES % 7}
  ROOT %scores = f32[128,12,193,193]{{2,3,1,0:T(8,128)}} convolution(%k, %k), \
window={{size=128x12 stride=127x11 lhs_dilate=128x12}}, dim_labels=01bf_01oi->01bf, {CYCLES % 500}
}}
"""


def test_cycles_are_counted_as_often_as_they_run():
  assert hlo_estimates.cycles(TEXT) == {PRODUCTS: 11 * 1000 + 500, COPIES: 11 * 30, OTHERS: 7}


def test_an_instruction_without_an_estimate_counts_nothing():
  text = TEXT.replace(CYCLES % 7, CYCLES % (2**63 - 1))
  assert text != TEXT and hlo_estimates.cycles(text)[OTHERS] == 0


def test_products_have_their_sizes():
  up, scores = sorted(hlo_estimates.products(TEXT), key=lambda one: one.flops, reverse=True)
  assert up == Product(128, 768, 3072, 11 * 193, "jit(step)/up")
  assert scores == Product(193, 64, 193, 128 * 12, "")


def test_inner_dimensions_of_a_window_are_counted():
  # The gradient of a kernel of 12 heads sums over 193 tokens, one product each.
  text = TEXT.replace("f32[128,12,193,193]{2,3,1,0:T(8,128)}", "f32[768,12,64,1]{0,2,3,1}").replace(
    "%k, %k), window={size=128x12 stride=127x11 lhs_dilate=128x12}, dim_labels=01bf_01oi->01bf",
    "%v, %k2), window={size=12x193 pad=11_11x0_0 rhs_reversal=1x0}, dim_labels=f1b0_0oi1->b0f1",
  )
  text = text.replace(
    "  %gelu",
    "  %v = bf16[128,193,768,1]{2,0,1,3} bitcast(%k)\n"
    "  %k2 = bf16[12,64,128,193]{2,1,3,0} bitcast(%k)\n  %gelu",
  )
  gradient = next(one for one in hlo_estimates.products(text) if one.inner == 128)
  assert gradient == Product(768, 128, 64, 12 * 193, "")


@pytest.mark.parametrize(("side", "expected"), [(128, 200 * 128 * 256), (256, 200 * 256 * 256)])
def test_padding_fills_up_tiles(side, expected):
  product = Product(rows=193, inner=64, columns=193, count=3, op_name="")
  assert product.padded_flops(side) == 2 * 3 * expected
  assert Product(128, 768, 3072, 1, "").padded_flops(side) == Product(128, 768, 3072, 1, "").flops
