"""The collectives of a compiled program, read from its HLO text.

A collective is an operation in which devices exchange data. The text names each one with its
shape, its line of source, and the computation that contains it. Computations are called by others,
in a loop once per iteration, so the number of times that a collective runs is the product along
its callers.

The TPU compiler splits a collective into pieces that are sent during other computation. Each
piece's text repeats the whole, with the same channel and a `chain_id`, and may be part of a loop
that it only overlaps. The collective is counted once, as often as the piece that runs least.

All shapes are those of one device.
"""

import collections
import dataclasses
import math
import re

KINDS = (
  "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
  "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip
_HALF_BYTE, _NO_BYTES = ("s4", "u4"), ("token", "opaque")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CHAIN = re.compile(r"channel_id=(\d+),.*\bchain_id=")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program."""

  kind: str  # one of KINDS
  # Of its arrays on one device: (("f32", (64, 512)), ...).
  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  times: int  # executions in one run
  in_loop: bool  # whether it is in a loop, even one that runs once
  groups: str  # the participating devices, as in the text
  op_name: str  # JAX's name of the operation it comes from
  source: str  # file:line of that operation, "" when not known

  @property
  def bytes(self) -> int:
    """Bytes of its arrays on one device: its input or its output, whichever is larger."""
    return sum(_bytes(*shape) for shape in self.shapes)


def _bytes(dtype: str, dims: tuple[int, ...]) -> int:
  if dtype in _NO_BYTES:
    return 0
  if dtype in _HALF_BYTE:
    return math.ceil(math.prod(dims) / 2)
  bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())
  return math.prod(dims) * bits // 8


def shapes_in(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """All array shapes in a piece of text, in order: [("f32", (64, 512)), ...]."""
  shapes = []
  for dtype, dims in _SHAPE.findall(text):
    dims = dims.replace("<=", "")
    shapes.append((dtype, tuple(int(size) for size in dims.split(",") if size)))
  return shapes


def _outer(text):
  """Length of the shape at the start of `text`: up to the space after balanced parentheses."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter in "({") - (letter in ")}")
    if letter == " " and depth == 0:
      return place
  return len(text)


def _parts(tuple_text):
  """Top-level elements of a tuple's text: "(a, (b, c))" -> ["a", "(b, c)"]."""
  parts, depth, start = [], 0, 1
  for place, letter in enumerate(tuple_text):
    depth += (letter in "({[") - (letter in ")}]")
    if (letter == "," and depth == 1) or (place == len(tuple_text) - 1):
      parts.append(tuple_text[start:place].strip())
      start = place + 1
  return parts


@dataclasses.dataclass
class Computation:
  """One computation of a program."""

  instructions: dict[str, tuple[str, str, str]]  # name -> (shape text, opcode, rest of the line)
  calls: list[tuple[str, int, bool]]  # (called computation, times, whether by a loop)


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """HLO text -> ({computation name: Computation}, name of the entry); callers come last in it."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if (head := _COMPUTATION.match(line)) is not None:
      current = computations[head[2]] = Computation({}, [])
      entry = head[2] if head[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)) is not None:
      name, right = match.groups()
      end = _outer(right)
      shape, right = right[:end], right[end + 1 :]
      opcode, _, rest = right.partition("(")
      current.instructions[name] = (shape, opcode, rest)
      if opcode.endswith(("-done", "-update")):
        continue  # repeats its start
      loop = opcode == "while"
      times = _trips(rest, current, computations) if loop else 1
      called = _CALLED.findall(rest)
      for branches in _BRANCHES.findall(rest):
        called += [branch.strip().lstrip("%") for branch in branches.split(",")]
      current.calls += [(name, times, loop) for name in called]
  return computations, entry


def _trips(rest, caller, computations):
  """Iterations of a loop: as stated in the text, or counted; 1 where neither is known.

  The TPU compiler does not state them. Loops of `lax.scan` and `lax.fori_loop` count up by one,
  while a counter that starts at a constant is less than another constant.
  """
  if stated := _TRIPS.search(rest):
    return int(stated[1])
  condition = computations[re.search(r"\bcondition=%?([\w.\-]+)", rest)[1]]
  for _, opcode, compared in condition.instructions.values():
    if opcode == "compare" and "direction=LT" in compared:
      counter, limit = operand_names(compared)[:2]
      place = re.search(r"\bindex=(\d+)", condition.instructions[counter][2])
      limit = _constant(limit, condition)
      _, opcode, elements = caller.instructions[operand_names(rest)[0]]
      if place and limit is not None and opcode == "tuple":
        start = _constant(operand_names(elements)[int(place[1])], caller)
        return 1 if start is None else max(limit - start, 0)
  return 1


def _constant(name, computation):
  """The integer that an instruction holds, through copies; None for other instructions."""
  while name in computation.instructions:
    _, opcode, rest = computation.instructions[name]
    if opcode == "constant":
      value = rest[: _closing(rest)]
      return int(value) if re.fullmatch(r"-?\d+", value) else None
    if opcode not in ("copy", "bitcast"):
      return None
    name = operand_names(rest)[0]
  return None


def executions(computations: dict[str, Computation], entry: str) -> dict[str, list]:
  """Executions of each computation, and whether in a loop: {name: [times, in a loop]}."""
  waiting = collections.Counter(
    name for computation in computations.values() for name, _, _ in computation.calls
  )
  runs = {name: [0, False] for name in computations}
  runs[entry][0] = 1
  ready = [name for name in computations if not waiting[name]]
  while ready:  # callers before their callees
    caller = ready.pop()
    for name, times, loop in computations[caller].calls:
      if name in runs:
        runs[name][0] += times * runs[caller][0]
        runs[name][1] |= (loop or runs[caller][1]) and runs[caller][0] > 0
        waiting[name] -= 1
        if not waiting[name]:
          ready.append(name)
  return runs


def _largest(kind, started, shape, operands):
  """Shapes of a collective's input or output, whichever is larger."""
  output = shape
  if started and kind in ("all-gather", "collective-permute"):
    output = _parts(shape)[1]  # (input, output, ...)
  size = lambda shapes: sum(_bytes(*one) for one in shapes)
  return max(shapes_in(output), operands, key=size)


def _operands(rest, instructions):
  """Shapes of an instruction's operands, which the text names."""
  shapes = []
  for name in operand_names(rest):
    if name in instructions:
      shapes += shapes_in(instructions[name][0])
  return shapes


def operand_names(rest: str) -> list[str]:
  """Names of an instruction's operands; some texts put a shape before each."""
  inside = re.sub(r"/\*.*?\*/", "", rest[: _closing(rest)])
  return re.findall(r"%?([\w.\-]+)(?:,|$)", inside)


def _closing(text):
  depth = 1
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return place
  return len(text)


def _sources(text):
  """{stack frame number: "file:line"} of a program that lists its sources at its head."""
  tables = {}
  for name in ("FileNames", "FileLocations", "StackFrames"):
    match = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    lines = match[1].splitlines() if match else []
    tables[name] = {int(number): rest for number, rest in (line.split(" ", 1) for line in lines)}
  number_in = lambda text, key: int(re.search(rf"{key}=(\d+)", text)[1])
  sources = {}
  for frame, content in tables["StackFrames"].items():
    location = tables["FileLocations"].get(number_in(content, "file_location_id"), "")
    if location:
      file = tables["FileNames"].get(number_in(location, "file_name_id"), '""').strip('"')
      sources[frame] = f"{file}:{number_in(location, 'line')}"
  return sources


def _source(rest, sources):
  """The source of an instruction: "file:line"."""
  file = re.search(r'source_file="([^"]*)"', rest)
  line = re.search(r"source_line=(\d+)", rest)
  if file:
    return f"{file[1]}:{line[1]}" if line else file[1]
  frame = re.search(r"stack_frame_id=(\d+)", rest)
  return sources.get(int(frame[1]), "") if frame else ""


def collectives(text: str) -> list[Collective]:
  """Every collective that a run of the program executes, in the order of the text.

  Args:
    text: HLO text of a compiled program, from `compiled.as_text()`.
  """
  computations, entry = parse(text)
  runs, sources = executions(computations, entry), _sources(text)
  listed, chains = [], {}
  for name, computation in computations.items():
    times, in_loop = runs[name]
    for shape, opcode, rest in computation.instructions.values():
      kind = opcode.removesuffix("-start")
      if kind not in KINDS or not times:
        continue
      op_name = re.search(r'op_name="([^"]*)"', rest)
      groups = re.search(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\[[^ ]*)", rest)
      if (chain := _CHAIN.search(rest)) and chain[1] in chains:
        # Another piece of a collective that is already listed.
        place = chains[chain[1]]
        if times < listed[place].times:
          listed[place] = dataclasses.replace(listed[place], times=times, in_loop=in_loop)
        continue
      if chain:
        chains[chain[1]] = len(listed)
      listed.append(
        Collective(
          kind=kind,
          shapes=tuple(
            _largest(kind, opcode != kind, shape, _operands(rest, computation.instructions))
          ),
          times=times,
          in_loop=in_loop,
          groups=groups[1].rstrip(",") if groups else "",
          op_name=op_name[1] if op_name else "",
          source=_source(rest, sources),
        )
      )
  return listed
