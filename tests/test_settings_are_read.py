"""Every setting is read somewhere."""

import ast
import inspect

import pytest
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from tests.helpers.paths import ROOT
from tests.helpers.settings import leaves


class _Reads(ast.NodeVisitor):
  """Dotted names of the settings that a module reads.

  Attributes of a name `config`, or of an attribute `.config`, are settings, and so are those of a
  local name such as `settings = config.augment`, and of a parameter that some call passes a group
  to (`f(settings=config.augment)`, also through functools.partial). A key that is not written out
  in place (`settings[name]`) counts for each field whose name is a string in the same function, and
  `**config.mesh` for the whole group.
  """

  def __init__(self, config, passed=None):
    self.reads, self._config = set(), config
    self._aliases, self._strings = [{}], [set()]
    self._passed = {} if passed is None else passed  # (function, parameter) -> path of a group
    self.passes = {}

  def _path(self, node):
    """Names below the config that an expression stands for, or None when it is something else."""
    if isinstance(node, ast.Name):
      return self._aliases[-1].get(node.id, [] if node.id == "config" else None)
    if isinstance(node, ast.Attribute):
      if node.attr == "config" and ast.unparse(node.value) != "jax":
        return []
      above = self._path(node.value)
      return None if above is None else [*above, node.attr]
    if isinstance(node, ast.Subscript):
      above = self._path(node.value)
      if above is None:
        return None
      return [*above, node.slice.value if isinstance(node.slice, ast.Constant) else "*"]
    return None

  def _read(self, path):
    if "*" in path:
      group = path[: path.index("*")]
      for key in self._keys(group) & self._strings[-1]:
        self.reads.add(".".join([*group, key]))
    else:
      self.reads.add(".".join(path))

  def _keys(self, group):
    value = self._config
    for part in group:
      value = value[part] if isinstance(value, ConfigDict) and part in value else {}
    return set(value) if isinstance(value, ConfigDict) else set()

  def visit_FunctionDef(self, node):
    inner = dict(self._aliases[-1])
    for argument in node.args.args + node.args.kwonlyargs:
      if (path := self._passed.get((node.name, argument.arg))) is not None:
        inner[argument.arg] = path
    for part in ast.walk(node):
      if isinstance(part, ast.Assign):
        for target, value in _bindings(part):
          if isinstance(target, ast.Name) and (path := self._path(value)) is not None:
            inner[target.id] = path
    self._aliases.append(inner)
    texts = {p.value for p in ast.walk(node) if isinstance(p, ast.Constant)}
    self._strings.append({text for text in texts if isinstance(text, str)})
    self.generic_visit(node)
    self._aliases.pop()
    self._strings.pop()

  def visit_Assign(self, node):
    for target, value in _bindings(node):
      # A name for a group is not yet a read of what the group holds.
      if not (isinstance(target, ast.Name) and self._is_group(self._path(value))):
        self.visit(value)

  def _is_group(self, path):
    return path is not None and "*" not in path and bool(self._keys(path))

  def visit_Call(self, node):
    for keyword in node.keywords:
      path = self._path(keyword.value)
      if keyword.arg is not None and self._is_group(path):
        functions = [node.func, *node.args[:1]]  # of functools.partial the first argument
        for function in functions:
          name = ast.unparse(function).split(".")[-1]
          self.passes[name, keyword.arg] = path
      if keyword.arg is None and path is not None:
        self.reads |= {".".join([*path, key]) for key in self._keys(path)} | {".".join(path)}
    self.generic_visit(node)

  def visit_Attribute(self, node):
    if (path := self._path(node)) is not None:
      self._read(path)
    self.generic_visit(node)

  def visit_Subscript(self, node):
    if (path := self._path(node)) is not None:
      self._read(path)
    self.generic_visit(node)


def _bindings(assign):
  """(target, value) pairs of an assignment; `a, b = c, d` gives two."""
  for target in assign.targets:
    if isinstance(target, ast.Tuple) and isinstance(assign.value, ast.Tuple):
      yield from zip(target.elts, assign.value.elts, strict=True)
    else:
      yield target, assign.value


def unread(config):
  """Settings that no module reads; data/ and models/ never see the config."""
  folder = ROOT / "dgia_jax"
  paths = [p for p in sorted(folder.rglob("*.py")) if p.relative_to(folder).parts[0] not in
           ("config.py", "data", "models")]  # fmt: skip
  trees, reads, passes = [ast.parse(path.read_text()) for path in paths], set(), {}
  for _ in range(2):  # first which groups are passed on, then who reads them
    for tree in trees:
      visitor = _Reads(config, dict(passes))
      visitor.visit(tree)
      reads |= visitor.reads
      passes |= visitor.passes
  return sorted(set(leaves(config)) - reads)


def test_every_setting_is_read():
  assert unread(config_lib.base()) == []


def test_a_setting_without_a_reader_is_found():
  config = config_lib.base()
  with config.unlocked():
    config.forgotten = 1
    config.augment.blur = 0.5  # `config.augment` itself is read
    config.loss.weights.prior = 0.0
    config.optimizer.workers = 2  # the name is read, in another group
  assert unread(config) == [
    "augment.blur", "forgotten", "loss.weights.prior", "optimizer.workers"
  ]  # fmt: skip


@pytest.mark.parametrize(
  "source, expected",
  [
    ("settings = config.augment\n  return settings.flip_prob", {"augment.flip_prob"}),
    ("settings = config.augment", set()),
    ("a, b = run.config.loss.weights, 3\n  return a['itc']", {"loss.weights.itc"}),
    ("s = config.dataset\n  return [s[n] for n in ('source',)]", {"dataset.source"}),
    ("return f(**self._run.config.mesh)", {"mesh.data", "mesh.fsdp", "mesh.tensor"}),
    ("jax.config.update('x', 1)", set()),
    ("return settings.flip_prob", set()),
  ],
)
def test_what_counts_as_reading(source, expected):
  config = config_lib.base()
  visitor = _Reads(config)
  visitor.visit(ast.parse(f"def function(config):\n  {source}"))
  assert visitor.reads & set(leaves(config)) == expected


def test_mesh_settings_are_what_create_mesh_takes():
  """The group is passed on as keywords, so each of its fields must be one."""
  from dgia_jax import sharding

  assert set(config_lib.base().mesh) <= set(inspect.signature(sharding.create_mesh).parameters)
