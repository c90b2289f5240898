import ast
import importlib
import inspect
import json

import pytest
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import config_ranges, recipes
from dgia_jax.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.settings import leaves

CONFIG_FILES = sorted(
  path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"
)


def changed(**fields):
  """The default config with fields replaced; "__" stands for the dot."""
  config = config_lib.base()
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
  return config


def test_default_passes_its_check():
  config_lib.check(config_lib.base())


def test_unknown_field_is_an_error():
  """A misspelt field in a config file must not become a new field that nobody reads."""
  config = config_lib.base()
  with pytest.raises(AttributeError, match="num_epoch"):
    config.num_epoch = 3
  with pytest.raises(AttributeError, match="treshold"):
    config.local_association.treshold = 0.5


MUST_BE_POSITIVE = (
  "batch_size", "gradient_accumulation", "num_epochs", "eval_every_epochs", "log_every_steps",
  "loss.temperature", "global_association.k", "eval.batch_size", "checkpoint.keep",
  "tokenizer.context_length", "optimizer.learning_rate",
)  # fmt: skip
CHOICES = {
  "model.dtype": ("bfloat16", "float32"),
  "loss.itc_reduction": ("mean", "sum"),
  "local_association.modality": ("both", "image", "text", "none"),
  "global_association.anchor": ("image", "text", "both"),
  "global_association.loss_over": ("all", "batch"),
  "global_association.exclude": ("top1", "self"),
  "bank.gate": ("off", "pair", "rank", "neighbours", "running"),
  "optimizer.lr_update": ("epoch", "step"),
  "optimizer.second_moment": ("float32", "float16"),
  "eval.select_on": ("val", "test"),
}
WRONG = [
  *((field, value) for field in MUST_BE_POSITIVE for value in (0, -1)),
  *((field, "other") for field in CHOICES),
  ("dataset.image_size", (64, 0)),
  ("dataset.image_size", (64, 64, 3)),
  ("loss.weights", {"itc": -1.0}),
  ("loss.weights", dict.fromkeys(("itc", "local", "global", "consistency"), 0.0)),
  ("global_association.start_epoch", 1),
  ("strict_mining.local_threshold_num_stds", -1.0),
  ("strict_mining.global_threshold_num_stds", -1.0),
  ("optimizer.learning_rate", float("nan")),
  ("seed", 2**32),
  ("dataset.data_dir", "s3://bucket/data"),
  ("pretrained", "s3://bucket/weights"),
  ("seed", -1),
  ("dataset.workers", -1),
  ("checkpoint.every_steps", -1),
  ("optimizer.warmup_epochs", -1),
  ("optimizer.weight_decay", -0.1),
  ("optimizer.epsilon", -1e-3),
  ("optimizer.epsilon", 0.0),
  ("optimizer.betas", (0.9,)),
  ("optimizer.betas", (0.9, 1.5)),
  ("optimizer.betas", (0.9, 1.0)),
  ("optimizer.betas", (1.0, 0.999)),
  ("loss.epsilon", -1.0),
  ("loss.epsilon", 0.0),
  ("local_association.threshold", float("nan")),
  ("global_association.threshold", float("nan")),
  ("local_association.relation_label", -0.1),
  ("local_association.relation_label", 1.1),
  ("local_association.start_epoch", 0),
  ("global_association.start_epoch", 0),
  ("augment.padding", -2),
  ("augment.flip_prob", 1.5),
  ("augment.erase_prob", -0.5),
  ("augment.mask_ratio", 1.1),
  ("augment.erase_area", (0.5, 0.1)),
  ("augment.erase_area", (0.1, 2.0)),
  ("augment.erase_aspect", (0.3,)),
  ("augment.erase_aspect", (0.0, 3.3)),
  ("augment.erase_area", (0.0, 0.4)),
  ("bank.update_rate", 1.1),
  ("bank.update_rate", -0.1),
]


@pytest.mark.parametrize("field, value", WRONG, ids=str)
def test_check_names_the_wrong_field(field, value):
  config = config_lib.base()
  if isinstance(value, dict):
    config.loss.weights.update(value)
  else:
    config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError) as caught:
    config_lib.check(config)
  assert str(caught.value).startswith(f"config.{field}")
  assert "\n" not in str(caught.value)


def test_check_names_the_choices():
  for field, choices in CHOICES.items():
    for choice in choices:
      config_lib.check(changed(**{field.replace(".", "__"): choice}))
    with pytest.raises(UserError, match=f"choose one of {', '.join(choices)}"):
      config_lib.check(changed(**{field.replace(".", "__"): "other"}))


def test_limits_are_allowed():
  config_lib.check(changed(bank__update_rate=0.0))
  config_lib.check(changed(bank__update_rate=1.0))
  config_lib.check(changed(loss__weights__itc=0.0))
  # A loss that is off may start whenever it likes.
  off = dict(global_association__start_epoch=1, loss__weights__global=0.0)
  config_lib.check(changed(**off))
  with pytest.raises(UserError, match="config.global_association.start_epoch=1: .*epoch 2"):
    config_lib.check(changed(**off, caption_exchange__prob=0.5))  # which mines, too


@pytest.mark.parametrize(
  "field, value",
  [
    ("global_association__anchor", "text"),
    ("global_association__anchor", "both"),
    ("strict_mining__require_text_match", True),
    ("bank__gate", "pair"),
    ("bank__gate", "running"),
  ],
)
def test_exchanged_captions_are_not_taken_for_the_pairs_own(field, value):
  config_lib.check(changed(**{field: value}))
  config_lib.check(changed(caption_exchange__prob=0.5))
  name = field.replace("__", ".")
  with pytest.raises(UserError, match=f"config.caption_exchange.prob=0.5: config.{name}={value} "):
    config_lib.check(changed(caption_exchange__prob=0.5, **{field: value}))


def test_what_starts_after_the_end_is_named():
  from configs import custom

  def never_starting(num_epochs):
    config.num_epochs = num_epochs
    config_lib.check(config)  # a short run may try out a config
    return config_ranges.never_starting(config)

  config = custom.get_config("tiny")  # relations start in epoch 9
  starts = "config.{}_association.start_epoch=9: the run ends before {}, since config.num_epochs={}"
  assert never_starting(9) == []
  assert never_starting(8) == [
    starts.format("local", "the local and consistency losses start", 8),
    starts.format("global", "the global loss starts", 8),
  ]
  config.loss.weights.update({"consistency": 0.0, "global": 0.0})
  assert never_starting(8) == [starts.format("local", "the local loss starts", 8)]
  config.loss.weights["local"] = 0.0
  assert never_starting(8) == []
  config.caption_exchange.prob = 0.5  # from the epoch after on
  for num_epochs in (8, 9):
    (sentence,) = never_starting(num_epochs)
    assert sentence == starts.format("global", "captions are exchanged", num_epochs)
  assert never_starting(10) == []


@pytest.mark.parametrize(
  "field, value",
  [
    ("strict_mining__reciprocal", True),
    ("strict_mining__require_text_match", True),
    ("strict_mining__global_threshold_num_stds", 2.0),
    ("bank__gate", "neighbours"),
  ],
)
def test_what_judges_mined_neighbours_needs_some(field, value):
  config_lib.check(changed(**{field: value}))
  name = field.replace("__", ".")
  with pytest.raises(UserError, match=f"config.{name}={value}: needs mined neighbours"):
    config_lib.check(changed(**{field: value, "loss__weights__global": 0.0}))


@pytest.mark.parametrize(
  "without",
  [
    {"local_association__modality": "none"},
    {"loss__weights__local": 0.0, "loss__weights__consistency": 0.0},
  ],
  ids=["modality", "weights"],
)
def test_a_threshold_on_local_relations_needs_some(without):
  stds = {"strict_mining__local_threshold_num_stds": 2.0}
  config_lib.check(changed(**stds))
  config_lib.check(changed(**stds, loss__weights__local=0.0))  # consistency mines them, too
  with pytest.raises(UserError, match="local_threshold_num_stds=2.0: needs local relations"):
    config_lib.check(changed(**stds, **without))


def test_a_finished_run_may_break_the_rules_for_new_ones():
  config = changed(strict_mining__reciprocal=True, loss__weights__global=0.0)
  config_lib.check_values(config)
  with pytest.raises(UserError, match="strict_mining.reciprocal=True"):
    config_lib.check(config)


def test_relations_of_captions_alone_are_not_mined_from_exchanged_ones():
  exchange = dict(caption_exchange__prob=0.5, local_association__modality="text")
  with pytest.raises(UserError, match="config.local_association.modality=text .* set it to image"):
    config_lib.check(changed(**exchange))
  config_lib.check(changed(**exchange, loss__weights__local=0.0, loss__weights__consistency=0.0))
  config_lib.check(changed(**exchange | {"local_association__modality": "both"}))


def test_differences_are_named_and_sorted():
  base = config_lib.base()
  assert config_lib.differences(base, config_lib.base()) == []
  other = changed(seed=7, loss__weights__local=0.5, augment__erase_area=(0.02, 0.5))
  expected = ["augment.erase_area", "loss.weights.local", "seed"]
  assert config_lib.differences(base, other) == expected
  assert config_lib.differences(other, base) == expected


def test_differences_of_a_config_read_back_from_json():
  """JSON turns tuples into lists, which is no difference."""
  base = config_lib.base()
  stored = json.loads(json.dumps(base.to_dict()))
  assert stored["dataset"]["image_size"] == [384, 128]
  assert config_lib.differences(base, stored) == []
  stored["dataset"]["image_size"] = [384, 192]
  del stored["optimizer"]["epsilon"]  # as a release without it would write: then it has its default
  stored["model"]["gone"] = True
  assert config_lib.differences(base, stored) == ["dataset.image_size", "model.gone"]


def test_differences_ignore_where_and_how_a_run_runs():
  moved = changed(
    mesh__fsdp=4, mesh__data=2, log_every_steps=1, dataset__data_dir="/x", dataset__source="/y",
    dataset__workers=0, gradient_accumulation=2, checkpoint__keep=9, checkpoint__every_steps=3,
  )  # fmt: skip
  assert config_lib.differences(config_lib.base(), moved) == []
  # Every other field is a difference.
  base, names = config_lib.base().to_dict(), list(leaves(config_lib.base()))
  ignored = {name for name in names if not config_lib.differences(base, _without(base, name))}
  runtime = {name for name in names if name.split(".")[0] in ("mesh", "checkpoint", "wandb")}
  runtime |= {"log_every_steps", "gradient_accumulation"}
  runtime |= {"dataset.data_dir", "dataset.source", "dataset.workers", "model.attention"}
  runtime |= {"dataset.annotations", "dataset.images", "model.remat", "model.pack_captions"}
  runtime |= {"model.full_last_block"}
  runtime |= {"eval.batch_size", "eval.before_training", "eval.contact_sheet"}
  runtime |= {f"eval.test_time.{name}" for name in config_lib.base().eval.test_time}
  runtime |= {"profile.steps", "profile.start_step"}
  # An empty group holds nothing to differ in.
  assert ignored == runtime | {"dataset.options"}


def _without(tree, name):
  """A copy of nested dicts in which the field `name` holds another value."""
  head, _, rest = name.partition(".")
  return tree | {head: _without(tree[head], rest) if rest else {} if tree[head] == {} else "other"}


def test_runtime_fields_exist():
  names = list(leaves(config_lib.base()))
  for field in config_lib.RUNTIME_FIELDS:
    assert any(name == field or name.startswith(f"{field}.") for name in names), field


# The files in configs/.


def variants(file):
  """Every variant in the table that the file's get_config gives to `recipes.vary`, and ""."""
  found = [""]
  for node in ast.walk(ast.parse((ROOT / "configs" / f"{file}.py").read_text())):
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "variants":
      found += [ast.literal_eval(key) for key in node.value.keys]
  return found


def test_the_search_for_variants_finds_some():
  assert {"synth_pedes", "cuhk_pedes", "icfg_pedes", "rstp_reid", "custom"} <= set(CONFIG_FILES)
  assert variants("synth_pedes") == ["", "plus", "scratch", "small"]
  assert variants("icfg_pedes") == ["", "paper", "plus", "strong", "holdout"]
  assert variants("custom") == ["", "plus", "mini", "mini_plus", "tiny", "tiny_plus"]


@pytest.mark.parametrize(
  "file, variant", [(file, variant) for file in CONFIG_FILES for variant in variants(file)]
)
def test_config_file_loads_locked_and_passes_its_check(file, variant):
  get_config = importlib.import_module(f"configs.{file}").get_config
  config = get_config(variant)
  assert config.is_locked
  config_lib.check(config)
  # No field but the free options of a dataset was added.
  known = set(leaves(config_lib.base()))
  assert {name for name in leaves(config) if not name.startswith("dataset.options")} <= known
  if variant:
    assert config_lib.differences(get_config(), config), "the variant changes nothing"


@pytest.mark.parametrize("file", CONFIG_FILES)
def test_unknown_variant_is_one_line_that_names_the_known(file):
  get_config = importlib.import_module(f"configs.{file}").get_config
  with pytest.raises(UserError, match=f"configs/{file}.py.*'nonsense'") as caught:
    get_config("nonsense")
  assert "\n" not in str(caught.value)
  for variant in variants(file)[1:]:
    assert f":{variant}" in str(caught.value)


def test_pod_takes_the_batch_as_its_variant_and_scales_the_rate():
  from configs import pod

  for variant, batch_size in (("", 4096), ("16384", 16384)):
    config = pod.get_config(variant)
    config_lib.check(config)
    assert config.batch_size == batch_size
    assert config.optimizer.learning_rate == pytest.approx(1e-5 * batch_size / 64)
  for variant in ("0", "-64", "64.5"):
    with pytest.raises(UserError, match="configs/pod.py"):
      pod.get_config(variant)


def test_the_embedded_default_fine_tunes_mini_with_the_released_start_epochs():
  from configs import synth_pedes

  released, scratch = config_lib.base(), synth_pedes.get_config("scratch")
  for variant in ("", "plus"):
    config = synth_pedes.get_config(variant)
    assert (config.pretrained, config.model.name, config.tokenizer.name) == ("mini", "mini", "")
    for group in ("local_association", "global_association"):
      start_epoch = config[group].start_epoch
      assert start_epoch == released[group].start_epoch != scratch[group].start_epoch
    assert config.eval.before_training and not config.eval.select_on == "test"
  assert (scratch.pretrained, scratch.model.name) == ("", "tiny")


@pytest.mark.parametrize("file", ["cuhk_pedes", "icfg_pedes", "rstp_reid"])
def test_the_strong_recipe_never_chooses_by_test_scores(file):
  get_config = importlib.import_module(f"configs.{file}").get_config
  plus, strong = get_config("plus"), get_config("strong")
  assert strong.eval.select_on == "val"
  assert strong.optimizer.learning_rate == plus.optimizer.learning_rate / 2
  assert strong.caption_exchange.prob == plus.caption_exchange.prob > 0
  # ICFG-PEDES has no val, so some of its training people become val.
  assert strong.dataset.options.get("holdout", 0) == (310 if file == "icfg_pedes" else 0)


def test_the_papers_recipe_and_released_defaults():
  base = config_lib.base()
  assert (base.loss.itc_reduction, base.global_association.loss_over) == ("mean", "all")
  assert base.augment.mask_first and base.optimizer.epsilon == 1e-3
  paper = recipes.as_in_paper(config_lib.base())
  assert (paper.loss.itc_reduction, paper.global_association.loss_over) == ("sum", "batch")
  assert not paper.augment.mask_first and paper.num_epochs == 40


# Every setting is read somewhere.


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
