"""Every public signature of the package is typed; while the tests run, annotations are checked."""

import ast

import pytest

from dgia_jax.method import losses
from tests.helpers.paths import ROOT

SKIPPED = {"self", "cls"}


def untyped(tree, prefix=""):
  """Public functions and methods of a module, or class, with a parameter or result untyped."""
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from untyped(node, f"{node.name}.")
    elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
      arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
      arguments += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
      missing = [a.arg for a in arguments if a.annotation is None and a.arg not in SKIPPED]
      if missing or node.returns is None:
        yield f"{prefix}{node.name}({', '.join(missing)})" + (" -> ?" if not node.returns else "")


@pytest.mark.parametrize(
  "folder", ["dgia_jax", "configs", "experiments/oracle", "experiments/speed", "experiments/paper"]
)
def test_public_signatures_are_typed(folder):
  found = {}
  for path in sorted((ROOT / folder).rglob("*.py")):
    if names := list(untyped(ast.parse(path.read_text()))):
      found[str(path.relative_to(ROOT))] = names
  assert found == {}


def test_an_untyped_signature_is_found():
  source = (
    "def f(a: int, b): pass\nclass C:\n  def g(self) -> int: return 1\n  def h(self, x: int): pass"
  )
  assert list(untyped(ast.parse(source))) == ["f(b) -> ?", "C.h() -> ?"]


def test_wrong_shapes_and_types_are_noticed_while_tests_run():
  import jax.numpy as jnp

  with pytest.raises(Exception, match="Type-check error"):
    losses.itc(jnp.ones((2, 3)), jnp.ones((4, 3)))
  with pytest.raises(Exception, match="Type-check error"):
    losses.itc(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature="warm")
