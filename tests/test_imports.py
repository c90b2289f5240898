"""The shape of the package: who may import whom, who may see the config, who writes axis names."""

import ast
import subprocess
import sys

import pytest

from dgia_jax import sharding
from tests.helpers.paths import ROOT

PACKAGE = ROOT / "dgia_jax"
# Packages as layers: a module imports from its own package and from those before it.
LAYERS = (
  "errors", "user_files", "files", "bucket", "remote", "older_names", "hub", "quiet_transformers",
  "full_disk", "cli",
  "stop_signals", "worker_processes", "distributed", "sharding", "data",
  "models", "method", "config_ranges", "config", "recipes", "run_flags", "reporting", "training",
  "search", "dry_run", "convert", "main", "__main__",
)  # fmt: skip
# They turn settings into arguments; all others are given arrays and numbers.
SEE_THE_CONFIG = {
  "config_ranges", "config", "recipes", "older_names", "run_flags", "main", "convert",
  "reporting.model_card",
  "method.train_step",
  "training.setup", "training.setup_checks", "training.evaluate", "training.train",
  "training.checkpoint", "training.run_weights",
  "training.workdir", "training.step_log", "training.step_profiler", "training.size_check",
  "training.evaluate_and_save", "training.packing_plan", "training.inputs",
  "dry_run.compile_report",
}  # fmt: skip
CORE = ("method", "models", "sharding", "dry_run.flops", "training.retrieval_metrics")
DATA_STACK = (
  "grain", "tensorflow_datasets", "ml_collections", "clu", "transformers", "tokenizers", "torch",
  "tensorflow",
)  # fmt: skip
MAX_LINES = 400


def sources(folder=PACKAGE):
  """{dotted module below the folder: its syntax tree}"""
  found = {}
  for path in sorted(folder.rglob("*.py")):
    parts = path.relative_to(folder).with_suffix("").parts
    found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
  return found


def layer(module):
  """The entry of LAYERS that a module belongs to: "data.pairs" -> "data"."""
  return module.split(".")[0]


def within(module, places):
  """Whether a module is one of `places`, or inside one."""
  return any(module == place or module.startswith(f"{place}.") for place in places)


def imported(tree):
  """Full dotted names of everything a module imports, inside functions too."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "imports are absolute here"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree):
  """Modules of this package that a module imports, without "dgia_jax."."""
  for name in imported(tree):
    if name.startswith("dgia_jax."):
      name = name.removeprefix("dgia_jax.")
      is_module = (PACKAGE / name.replace(".", "/")).is_dir() or (
        PACKAGE / (name.replace(".", "/") + ".py")
      ).exists()
      owner = name if is_module else name.rpartition(".")[0]  # else a name inside a module
      if owner:  # names of the package itself, such as its version, belong to no layer
        yield owner


def against_the_order(found):
  """Imports that break the order of the layers, as text."""
  rank = {name: number for number, name in enumerate(LAYERS)}
  rank[""] = len(LAYERS)  # the package itself, which imports its public names on use
  for module, tree in found.items():
    for other in own_imports(tree):
      same = layer(module) == layer(other) and (PACKAGE / layer(module)).is_dir()
      if not same and rank[layer(other)] >= rank[layer(module)]:
        yield f"{module} imports {other}"


def test_imports_follow_the_layers():
  assert list(against_the_order(sources())) == []


def test_the_layers_are_those_of_the_package():
  assert sorted(LAYERS) == sorted({layer(module) for module in sources() if module})


def test_an_import_against_the_order_is_found():
  tree = lambda text: ast.parse(f"def lazy():\n  {text}")
  broken = {
    "method.losses": ("from dgia_jax.training import train", "training.train"),
    "data.pairs": ("import dgia_jax.models.transformer", "models.transformer"),
    "cli": ("from dgia_jax.config import base", "config"),
  }
  for module, (text, imported_module) in broken.items():
    expected = [f"{module} imports {imported_module}"]
    assert list(against_the_order({module: tree(text)})) == expected
  allowed = {
    "models.pretrained.load": "from dgia_jax.models.pretrained import tensor_names",
    "training.train": "from dgia_jax.method.losses import itc",
  }
  assert not list(against_the_order({m: tree(text) for m, text in allowed.items()}))


def test_no_module_imports_itself():
  graph = {module: set(own_imports(tree)) - {module} for module, tree in sources().items()}
  for module in list(graph):
    seen, waiting = set(), [module]
    while waiting:
      for other in graph.get(waiting.pop(), ()):
        assert other != module, f"{module} imports itself by way of others"
        if other not in seen:
          seen.add(other)
          waiting.append(other)


def test_the_package_knows_no_configs_experiments_or_tests():
  for module, tree in sources().items():
    outside = {name.split(".")[0] for name in imported(tree)}
    assert not outside & {"configs", "experiments", "tests", "torch", "tensorflow"}, module


def config_uses(tree):
  """How a module comes by the run's config, as text."""
  for name in imported(tree):
    if name.split(".")[0] == "ml_collections" or name.startswith("dgia_jax.config"):
      yield f"imports {name}"
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and node.attr == "config":
      if ast.unparse(node.value).split(".")[-1] in ("run", "_run", "setup", "_setup"):
        yield f"reads {ast.unparse(node)}"
    elif isinstance(node, ast.FunctionDef | ast.Lambda):
      arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
      yield from (f"receives {a.arg}" for a in arguments if a.arg in ("config", "run", "setup"))


def test_only_the_edge_sees_the_config():
  # There `config` is TFDS's own, or the plain content of an older run's config.json.
  foreign = ("data.synth_pedes.builder", "older_names")
  for module, tree in sources().items():
    uses = [use for use in config_uses(tree) if module not in foreign or use.startswith("imports")]
    assert not uses or module in SEE_THE_CONFIG, f"{module} {uses}"


def test_who_may_see_the_config_does():
  found = sources()
  for module in SEE_THE_CONFIG - {"config", "main", "training.checkpoint", "convert"}:
    assert list(config_uses(found[module])), f"{module} could be taken off the list"


# Calls whose arguments are, or hold, names of mesh axes.
TAKE_AXES = {
  "P", "PartitionSpec", "NamedSharding", "Mesh", "make_mesh", "shard_map", "axis_index",
  "axis_size", "psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute",
  "psum_scatter", "pcast",
}  # fmt: skip


def axis_literals(tree):
  """Axis names written out in calls that take some."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in TAKE_AXES:
      for part in [*node.args, *node.keywords]:
        for leaf in ast.walk(part):
          if isinstance(leaf, ast.Constant) and leaf.value in sharding.AXES:
            yield ast.unparse(node)


def test_only_sharding_writes_axis_names():
  for folder in (PACKAGE, ROOT / "experiments"):
    for module, tree in sources(folder).items():
      assert module == "sharding" or list(axis_literals(tree)) == [], module


def test_a_written_axis_name_is_found():
  for text in ('P(("data", "fsdp"))', 'jax.lax.psum(x, axis_name="tensor")', "P(None, 'data')"):
    assert list(axis_literals(ast.parse(text)))
  assert not list(axis_literals(ast.parse('P(BANK_AXES); open("data")')))


@pytest.mark.parametrize("folder", ["dgia_jax", "experiments"])
def test_files_are_short(folder):
  for path in (ROOT / folder).rglob("*.py"):
    assert len(path.read_text().splitlines()) <= MAX_LINES, path


def run_python(program, *path):
  """Runs a program in a new process that sees the project; fails with what it wrote."""
  code = f"import sys; sys.path[:0] = {[*map(str, path), str(ROOT)]!r}\n{program}"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


BLOCK = f"""
class Block:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {DATA_STACK!r}:
      raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_core_imports_without_the_data_stack():
  names = [f"dgia_jax.{module}" for module in sources() if within(module, CORE)]
  assert len(names) > len(CORE)
  run_python(BLOCK + f"import importlib\nfor name in {names!r}: importlib.import_module(name)")


SLOW_TO_IMPORT = (
  "torch", "tensorboardX", "tensorflow", "tensorflow_datasets", "transformers", "orbax", "grain",
  "matplotlib", "gradio", "pandas", "pyarrow", "scipy", "wandb", "fsspec", "ftfy",
)  # fmt: skip


@pytest.mark.integration
def test_a_retriever_is_imported_without_slow_packages():
  code = "import sys\nfrom dgia_jax import Retriever\nprint(*sys.modules)"
  packages = {name.split(".")[0] for name in run_python(code).split()}
  assert "jax" in packages and packages.isdisjoint(SLOW_TO_IMPORT)


@pytest.mark.integration
def test_commands_import_only_what_they_need():
  """In one process, from the command that needs least to the one that needs most."""
  slow = set(SLOW_TO_IMPORT)
  unneeded = {
    "dgia_jax.__main__": slow | {"jax", "flax", "tokenizers"},
    "dgia_jax.data.__main__": slow | {"jax", "flax", "tokenizers"},
    "dgia_jax.search.__main__": slow | {"jax", "flax", "tokenizers"},
    "dgia_jax.main": slow | {"tokenizers"},
    "dgia_jax.search.commands": slow,
    "dgia_jax.convert": slow - {"orbax"},
  }
  run_python(
    "import importlib\n"
    f"for name, unneeded in {unneeded!r}.items():\n"
    "  importlib.import_module(name)\n"
    "  assert not unneeded & set(sys.modules), (name, unneeded & set(sys.modules))"
  )


def test_the_block_blocks():
  with pytest.raises(AssertionError, match="blocked: ml_collections"):
    run_python(BLOCK + "import dgia_jax.config")


@pytest.mark.integration
def test_training_imports_no_tensorflow(tmp_path):
  """With a TensorFlow in reach that tells when it is imported; looking for one is allowed."""
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text('print("TensorFlow was imported")\n')
  assert "was imported" in run_python("import tensorflow", tmp_path)
  program = (
    "import dgia_jax.training.train, dgia_jax.training.evaluate, dgia_jax.main\nprint('ready')"
  )
  assert run_python(program, tmp_path).split() == ["ready"]


def test_the_tables_of_the_packages_are_complete():
  from dgia_jax import method, models, training
  from dgia_jax.models import pretrained

  assert [name for name in method.__all__ if f"{name}`" not in method.__doc__] == []
  modules = {path.stem for path in (PACKAGE / "training").glob("*.py")} - {"__init__"}
  assert [module for module in sorted(modules) if f"| `{module}` |" not in training.__doc__] == []
  for package, folder in ((models, "models"), (pretrained, "models/pretrained")):
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert [module for module in sorted(modules) if f"`{module}`" not in package.__doc__] == []
