"""What the TPU compiler expects of a program, read from its HLO text: cycles, and padded products.

The compiler writes its estimate of the cycles beside every instruction that takes some; copies
that run in the background have none, nor have others that it cannot judge. Matrix products are
written as convolutions. A matrix unit multiplies tiles, so a product with matrices of other sizes
computes the padding as well.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from dgia_jax.dry_run import hlo_collectives
from dgia_jax.dry_run.hlo_collectives import Computation

PRODUCTS, COPIES, OTHERS = "products", "copies", "others"
_SUBLANES = 8  # rows of a tile of the first matrix
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**63 - 1  # cycles of an instruction that the compiler cannot judge
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product, (rows, inner) times (inner, columns), done `count` times in a run."""

  rows: int
  inner: int
  columns: int
  count: int
  op_name: str  # JAX's name of the operation it comes from

  @property
  def flops(self) -> int:
    """Operations of all repetitions."""
    return 2 * self.rows * self.inner * self.columns * self.count

  def padded_flops(self, side: int) -> int:
    """As `flops`, with matrices filled up to the tiles of a matrix unit of `side` x `side`."""
    up = lambda size, multiple: -(-size // multiple) * multiple
    columns, inner = up(self.columns, side), up(self.inner, side)
    return 2 * up(self.rows, _SUBLANES) * inner * columns * self.count


def cycles(text: str) -> dict[str, int]:
  """Estimated cycles of a run: {PRODUCTS, COPIES, OTHERS: sum}, what is fused with a product in it.

  Args:
    text: HLO text of a program compiled for a TPU, from `compiled.as_text()`.
  """
  computations, entry = hlo_collectives.parse(text)
  sums = collections.Counter({PRODUCTS: 0, COPIES: 0, OTHERS: 0})
  for _, opcode, rest, times in _executed(computations, entry):
    match = _CYCLES.search(rest)
    if match and int(match[1]) != _NO_ESTIMATE:
      if opcode == "convolution" or any(
        _multiplies(name, computations) for name in _CALLS.findall(rest)
      ):
        kind = PRODUCTS
      else:
        kind = COPIES if opcode == "copy" else OTHERS
      sums[kind] += int(match[1]) * times
  return dict(sums)


def _executed(
  computations: dict[str, Computation], entry: str
) -> Iterator[tuple[str, str, str, int]]:
  """(shape, opcode, rest of the line, times) of instructions that run and are part of no fusion."""
  runs = hlo_collectives.executions(computations, entry)
  fused = {
    name
    for computation in computations.values()
    for _, opcode, rest in computation.instructions.values()
    if opcode == "fusion"
    for name in _CALLS.findall(rest)
  }
  for name, computation in computations.items():
    if runs[name][0] and name not in fused:
      for shape, opcode, rest in computation.instructions.values():
        yield shape, opcode, rest, runs[name][0]


def _multiplies(name: str, computations: dict[str, Computation]) -> bool:
  """Whether a computation, or one that it calls, contains a product."""
  computation = computations[name]
  return any(opcode == "convolution" for _, opcode, _ in computation.instructions.values()) or any(
    _multiplies(called, computations) for called, _, _ in computation.calls
  )


def products(text: str) -> list[Product]:
  """All matrix products that a run executes; `text` as in `cycles`."""
  computations, entry = hlo_collectives.parse(text)
  runs = hlo_collectives.executions(computations, entry)
  return [
    _product(shape, rest, runs[name][0], computation)
    for name, computation in computations.items()
    for shape, opcode, rest in computation.instructions.values()
    if opcode == "convolution" and runs[name][0]
  ]


def _product(shape: str, rest: str, times: int, computation: Computation) -> Product:
  """Reads a convolution, whose window takes the place of batch dimensions and of inner ones."""
  output = hlo_collectives.shapes_in(shape)[0][1]
  left, right = (
    hlo_collectives.shapes_in(computation.instructions[name][0])[0][1]
    for name in hlo_collectives.operand_names(rest)[:2]
  )
  of_left, of_right, of_output = _LABELS.search(rest).groups()
  name = _NAME.search(rest)
  spatial = [label for label in of_output if label.isdigit()]
  window = dict(field.split("=") for field in _fields(rest))
  count = 1
  for label in spatial:
    inputs, outputs = left[of_left.index(label)], output[of_output.index(label)]
    count *= _places(inputs, outputs, int(label), len(spatial), window)
  return Product(
    rows=left[of_left.index("b")],
    inner=right[of_right.index("i")],
    columns=right[of_right.index("o")],
    count=count * times,
    op_name=name[1] if name else "",
  )


def _fields(rest):
  window = _WINDOW.search(rest)
  return window[1].split() if window else []


def _places(inputs, outputs, number, dims, window):
  """Pairs of an output and a place in the window that meet an input, in one spatial dimension."""
  part = lambda key, default: window.get(key, "x".join([default] * dims)).split("x")[number]
  size, stride, left_dilate, right_dilate = (
    int(part(key, "1")) for key in ("size", "stride", "lhs_dilate", "rhs_dilate")
  )
  padding = int(part("pad", "0_0").split("_")[0])
  place = lambda output, k: output * stride + k * right_dilate - padding
  return sum(
    place(output, k) % left_dilate == 0 and 0 <= place(output, k) // left_dilate < inputs
    for output in range(outputs)
    for k in range(size)
  )
