"""Whole runs with parts frozen, LoRA, an average of the weights and the rest; what they save."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dgia_jax import convert, sharding
from dgia_jax.data import tokenizer
from dgia_jax.dry_run import compile_report
from dgia_jax.errors import UserError
from dgia_jax.method import compilation, train_state, trainable
from dgia_jax.models.pixels import normalize_pixels
from dgia_jax.reporting.console import Console
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import checkpoint, evaluate, run_weights, setup, size_check, train
from tests.helpers import tiny_run
from tests.helpers.stopped_run import stopped_after
from tests.helpers.trees import by_name

FREEZE = {"freeze__image_blocks": 1, "freeze__text_blocks": -1}
LORA = {"lora__rank": 2, "freeze__text_blocks": 1}
CLIP_AND_DECAY = {"optimizer__clip_norm": 0.1, "optimizer__layer_decay": 0.7}
TEMPERATURE = {"loss__learnable_temperature": True}
EMA = {"ema__decay": 0.8}
ALL = LORA | CLIP_AND_DECAY | TEMPERATURE | EMA | {"freeze__text_blocks": 0}
GATE = {"bank__gate": "running", "gradient_accumulation": 2}
FEATURES = {
  "freeze": FREEZE, "lora": LORA, "clip and decay": CLIP_AND_DECAY, "temperature": TEMPERATURE,
  "ema": EMA | {"freeze__image_blocks": 1}, "all": ALL,
  "running gate": GATE, "rank": {"bank__gate": "rank"}, "neighbours": {"bank__gate": "neighbours"},
  # Neighbours are mined from the second epoch on, and captions are exchanged in the third.
  "exchange": {"caption_exchange__prob": 0.7, "num_epochs": 3},
  "patches": {"augment__patch_drop_ratio": 0.5},
}  # fmt: skip
KINDS = {"raw": "", "ema": "_ema"}  # of weights -> what their lines in metrics.jsonl add to a split
each_feature = pytest.mark.parametrize("fields", FEATURES.values(), ids=FEATURES)


def run(workdir, **fields):
  """Trains two epochs; returns the content of results.json."""
  config = tiny_run.config(**{"num_epochs": 2, "checkpoint__every_steps": 1} | fields)
  return train.train(config, workdir, Console(file=io.StringIO()), tiny_run.splits())


def _allow_small_meshes(patch):
  """Meshes smaller than the eight devices of this process exist."""
  original = sharding.create_mesh

  def create(data=-1, fsdp=1, tensor=1, devices=None):
    if devices is None:
      devices = jax.devices()[: data * fsdp * tensor]
    return original(data, fsdp, tensor, devices)

  patch.setattr(sharding, "create_mesh", create)


@pytest.fixture(autouse=True)
def small_meshes(monkeypatch):
  _allow_small_meshes(monkeypatch)


@pytest.fixture
def parts(monkeypatch):
  """Function from config fields to a setup without a working directory."""
  monkeypatch.setattr(tokenizer.Tokenizer, "save", lambda self, folder: None)
  return lambda **fields: setup.create(tiny_run.config(**fields), "/nonexistent", tiny_run.splits())


@pytest.mark.integration
@each_feature
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, fields):
  whole = run(tmp_path / "whole", **fields)
  num_steps = 5 * fields.get("num_epochs", 2)
  with stopped_after(num_steps - 3):  # within the last epoch
    run(tmp_path / "stopped", **fields)
  assert checkpoint.steps_saved(tmp_path / "stopped")[-1] == num_steps - 3
  assert run(tmp_path / "stopped", **fields)["digest"] == whole["digest"]
  steps = {name: checkpoint.Checkpoints(tmp_path / name).latest() for name in ("whole", "stopped")}
  assert set(steps.values()) == {num_steps}
  # The digest leaves Adam's averages out.
  last = [json.loads((tmp_path / name / "results.json").read_text()) for name in steps]
  assert last[0]["last"] == last[1]["last"] and last[0].get("ema") == last[1].get("ema")


@pytest.mark.integration
def test_captions_are_exchanged_from_the_epoch_after_the_first_mining(tmp_path):
  def losses(prob):
    fields = {"num_epochs": 3, "global_association__threshold": -1.0, "log_every_steps": 1}
    run(tmp_path / str(prob), **fields, caption_exchange__prob=prob, model__pack_captions=False)
    lines = (tmp_path / str(prob) / "metrics.jsonl").read_text().splitlines()
    return [line["loss_itc"] for line in map(json.loads, lines) if "loss_itc" in line]

  own, exchanged = losses(0.0), losses(1.0)
  assert own[:10] == exchanged[:10]  # two epochs of five steps
  assert all(a != b for a, b in zip(own[10:], exchanged[10:], strict=True))


def three_steps(setup_of_run):
  """The metrics and the state after three steps."""
  state = train_state.create(setup_of_run.mesh, setup.state_initializer(setup_of_run))
  tokens_NxL = setup_of_run.tokenizer.encode(setup_of_run.train_pairs.captions)
  batches = train.global_batches(setup_of_run, tokens_NxL, 0)
  outputs, compiled = [], None
  for _, batch in zip(range(3), batches, strict=False):
    compiled = compiled or compilation.compile_step(
      setup.create_step(setup_of_run), setup_of_run.mesh, state, batch
    )
    state, output = compiled(state, batch)
    outputs.append(jax.device_get(output.metrics))
  batches.close()
  return outputs, jax.device_get(state)


@pytest.mark.integration
@each_feature
def test_any_mesh_takes_the_same_steps(parts, fields):
  one, state = three_steps(parts(**fields))
  axes = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  many, mesh_state = three_steps(parts(**fields, **axes))
  for ours, theirs in zip(many, one, strict=True):
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=5e-4, atol=1e-5, err_msg=name)
  named = by_name((mesh_state.params, mesh_state.ema))
  for name, leaf in by_name((state.params, state.ema)).items():
    np.testing.assert_allclose(named[name], leaf, atol=5e-3, err_msg=name)


@pytest.mark.integration
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_bank_holds_features_of_the_trained_weights_not_of_their_average(parts, accumulation):
  """After some steps the average lags behind the weights, so their features differ."""
  made = parts(**EMA, gradient_accumulation=accumulation)
  state = train_state.create(made.mesh, setup.state_initializer(made))
  tokens_NxL = made.tokenizer.encode(made.train_pairs.captions)
  batches = train.global_batches(made, tokens_NxL, 0)
  step = jax.jit(setup.create_step(made))
  for _, batch in zip(range(3), batches, strict=False):
    before = state
    state, _ = step(state, batch)
  batches.close()
  averaged = trainable.merge(before.params, before.ema)
  pixels = normalize_pixels(batch["image"], made.size.family.pixels)
  own, other = (
    np.stack(made.encode(params, pixels, batch["tokens"])) for params in (before.params, averaged)
  )
  rows = np.stack([state.bank.image, state.bank.text])[:, batch["index"]]
  np.testing.assert_allclose(rows, own, atol=1e-4 * np.abs(own).max())
  assert np.abs(rows - other).max() > 1e-2 * np.abs(own).max()


@pytest.mark.integration
@pytest.mark.parametrize("parts_of_batch", [1, 2])
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(parts, parts_of_batch):
  for fields in (FREEZE, LORA):
    made = parts(**fields, gradient_accumulation=parts_of_batch)
    before = jax.device_get(train_state.create(made.mesh, setup.state_initializer(made)).params)
    _, state = three_steps(made)
    trained = by_name(made.select_trained(state.params))
    for name, leaf in by_name(before).items():
      num_frozen = len(leaf) if leaf.ndim else 0
      if name in trained:
        num_frozen -= len(trained[name])
        assert not np.array_equal(state_leaf(state, name)[num_frozen:], leaf[num_frozen:]), name
      np.testing.assert_array_equal(state_leaf(state, name)[:num_frozen], leaf[:num_frozen])


def state_leaf(state, name):
  return by_name(state.params)[name]


def test_without_settings_the_step_is_the_plain_one(parts, monkeypatch):
  """The lowered program is, to the letter, that of a step that knows nothing of all this."""

  def lowered(made):
    batch = compile_report.abstract_batch(made.config)
    return jax.jit(setup.create_step(made)).lower(made.abstract_state, batch).as_text()

  made = parts()
  with_this = lowered(made)
  assert made.abstract_state.ema is None
  assert set(made.abstract_state.params) == set(trainable.TOWERS)
  monkeypatch.setattr(trainable, "select", lambda params, frozen: params)
  monkeypatch.setattr(trainable, "merge", lambda params, trained: trained)
  monkeypatch.setattr(trainable, "towers", lambda params, alpha: params)
  assert lowered(parts()) == with_this
  assert lowered(parts(freeze__image_blocks=1)) != with_this


def compiled_bytes(made):
  """(bytes of Adam's averages, temporary bytes, FLOPs) of the compiled step."""
  state = made.abstract_state
  batch = compile_report.abstract_batch(made.config)
  compiled = compilation.compile_step(setup.create_step(made), made.mesh, state, batch)
  averages = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
  return averages, compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]


@pytest.mark.integration
def test_freezing_saves_memory_and_arithmetic(parts):
  """Adam's averages exist for what is trained alone, and frozen blocks have no backward pass."""
  settings = {"model__name": "tiny", "dataset__image_size": (64, 32), "model__remat": False}
  full, frozen, lora = (
    compiled_bytes(parts(**settings, **fields))
    for fields in (
      {}, {"freeze__image_blocks": 2, "freeze__text_blocks": -1}, {"lora__rank": 4}
    )
  )  # fmt: skip
  assert frozen[0] < 0.35 * full[0] and lora[0] < 0.15 * full[0]
  assert frozen[1] < 0.6 * full[1]
  assert frozen[2] < 0.8 * full[2]


def test_size_check_counts_only_what_is_trained(parts):
  alone = {"model__pack_captions": False}  # the number of packed tokens is not known
  full, frozen = parts(**alone), parts(freeze__image_blocks=1, freeze__text_blocks=-1, **alone)
  image, text = (
    sum(leaf.size for leaf in jax.tree.leaves(full.abstract_state.params[tower]))
    for tower in trainable.TOWERS
  )
  assert size_check.num_trained(full) == image + text
  assert size_check.num_trained(frozen) < image
  need = lambda made: {need.name.split(" of ")[0]: need for need in size_check.estimate(made)}
  state = "parameters, gradients and optimiser state"
  saved = need(full)[state].num_bytes - need(frozen)[state].num_bytes
  # A gradient and two averages of four bytes for each frozen parameter.
  num_frozen = image + text - size_check.num_trained(frozen)
  assert saved == 3 * 4 * num_frozen
  activations = [need(made)["the activations"].num_bytes for made in (full, frozen)]
  # Image tokens count in one block of two, text tokens in none: 5 x 1 of 5 x 2 + 8 x 2.
  assert activations[1] == activations[0] * 5 / 26


def test_the_parameter_table_ends_with_the_trained_share(parts):
  made = parts(freeze__text_blocks=-1)
  state = train_state.create(made.mesh, setup.state_initializer(made))
  out = io.StringIO()
  Console(file=out).parameter_overview(state.params, size_check.num_trained(made))
  total = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  image = sum(leaf.size for leaf in jax.tree.leaves(state.params["image"]))
  assert f"Trained: {image:,} ({100 * image / total:.2f} %), frozen: {total - image:,}" in (
    out.getvalue()
  )
  full = io.StringIO()
  Console(file=full).parameter_overview(state.params, total)
  assert "frozen" not in full.getvalue()


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"freeze__image_blocks": 3}, "config.freeze.image_blocks=3: the image tower .* has 2 blocks"),
    ({"freeze__text_blocks": -2}, "config.freeze.text_blocks=-2: give a number, or -1"),
    ({"freeze__text_blocks": -1, "freeze__image_blocks": -1}, "leave nothing to train"),
    (
      {"freeze__text_blocks": 2, "freeze__image_blocks": -1, "lora__rank": 1},
      "leave nothing to train",
    ),
    ({"lora__rank": 33}, "config.lora.rank=33: the image tower .* is 32 wide"),
    ({"lora__rank": -1}, "config.lora.rank=-1"),
    ({"lora__alpha": 0.0}, "config.lora.alpha=0.0: must be positive"),
    ({"lora__matrices": ("qkv", "key")}, "config.lora.matrices=.*give some of qkv, out, up, down"),
    ({"lora__matrices": ("qkv", "qkv")}, "config.lora.matrices=.*each once"),
    ({"lora__matrices": ()}, "config.lora.matrices"),
    ({"ema__decay": 1.0}, r"config.ema.decay=1.0: must lie in \[0, 1\)"),
    ({"ema__decay": -0.1}, "config.ema.decay=-0.1"),
    ({"ema__initial_share": 1.0}, r"config.ema.initial_share=1.0: must lie in \[0, 1\)"),
    ({"ema__initial_share": 0.4}, "config.ema.initial_share=0.4: .*set config.pretrained"),
    (
      {"ema__initial_share": 0.4, "ema__decay": 0.9, "pretrained": "mini"},
      "config.ema.initial_share=0.4 does not go with config.ema.decay",
    ),
    (
      {"ema__initial_share": 0.4, "lora__rank": 2, "pretrained": "mini"},
      "config.ema.initial_share=0.4 does not go with config.lora.rank",
    ),
    ({"eval__weights": "ema"}, "config.eval.weights=ema needs an average"),
    ({"eval__weights": "better"}, "config.eval.weights=better needs an average"),
    ({"eval__weights": "mean"}, "config.eval.weights='mean': choose one of raw, ema, better"),
    ({"optimizer__clip_norm": -1.0}, "config.optimizer.clip_norm=-1.0"),
    ({"optimizer__layer_decay": 0.0}, "config.optimizer.layer_decay=0.0: must be positive"),
    ({"optimizer__layer_decay": 1.1}, "config.optimizer.layer_decay=1.1"),
    (
      {"loss__temperature": 0.005, "loss__learnable_temperature": True},
      r"config.loss.temperature=0.005: a learnable temperature lies in \[0.01, 1.0\]",
    ),
  ],
)
def test_nonsense_is_refused_in_one_line(parts, fields, words):
  with pytest.raises(UserError, match=words) as error:
    parts(**fields)
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Working directory and results of a run with everything switched on."""
  with pytest.MonkeyPatch.context() as patch:
    _allow_small_meshes(patch)
    workdir = tmp_path_factory.mktemp("everything")
    return workdir, run(workdir, **ALL)


@pytest.mark.integration
def test_the_average_is_evaluated_beside_the_weights(finished):
  workdir, results = finished
  lines = tiny_run.metrics(workdir)
  for split in ("val", "test"):
    assert [line["epoch"] for line in lines if line["split"] == f"{split}_ema"] == [1, 2]
  assert set(results["ema"]) == {"last", "best"}
  assert results["ema"]["best"]["selected_on"] == "val"
  (last,) = (line for line in lines if line["split"] == "test_ema" and line["epoch"] == 2)
  assert {k: last[k] for k in ("t2i", "i2t")} == {
    k: results["ema"]["last"][k] for k in ("t2i", "i2t")
  }


@pytest.mark.integration
def test_the_learned_temperature_is_logged_and_converted(finished, tmp_path):
  workdir, _ = finished
  logged = [line["temperature"] for line in tiny_run.metrics(workdir) if line["split"] == "train"]
  assert len(set(logged)) == len(logged) and all(0.01 <= value <= 1 for value in logged)
  convert.convert(workdir, tmp_path, "last")
  learned = run_weights.load(workdir, "last").temperature
  stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  scale = float(np.exp(stored["logit_scale"]))
  assert scale == pytest.approx(1 / learned, rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_lora_is_merged_wherever_a_run_is_opened(finished, tmp_path, weights):
  workdir, _ = finished
  config = tiny_run.config(**ALL)
  made = setup.create(config, workdir, tiny_run.splits())
  checkpoints = checkpoint.Checkpoints(workdir)
  state, _ = checkpoints.restore(checkpoints.latest(), made.mesh, made.abstract_state)
  checkpoints.close()
  params = state.params if weights == "raw" else trainable.merge(state.params, state.ema)
  pair = params["lora"]["image"]["last_block"]["mlp"]["up"]
  base = np.asarray(params["image"]["last_block"]["mlp"]["up"]["kernel"])
  expected = base + config.lora.alpha / 2 * (np.asarray(pair["a"]) @ np.asarray(pair["b"]))
  assert np.abs(expected - base).max() > 1e-6  # the pair has learned
  loaded = run_weights.load(workdir, "last", weights).params
  assert set(loaded) == {"image", "text"}
  np.testing.assert_allclose(loaded["image"]["last_block"]["mlp"]["up"]["kernel"], expected,
                             rtol=1e-5, atol=1e-6)  # fmt: skip
  images = tiny_run.splits()["test"]
  evaluated = evaluate.Evaluator(made).embed_images(params, images)
  normalised = evaluated / np.linalg.norm(evaluated, axis=1, keepdims=True)
  pixels = [images.images[number] for number in range(images.num_images)]
  opened = Retriever.from_pretrained(workdir, "last", weights=weights)
  np.testing.assert_allclose(opened.embed_images(pixels), normalised, atol=1e-4)
  convert.convert(workdir, tmp_path, "last", weights)
  converted = Retriever.from_pretrained(tmp_path)
  np.testing.assert_allclose(converted.embed_images(pixels), normalised, atol=1e-4)


@pytest.mark.integration
def test_a_new_run_starts_from_the_merged_weights(finished, tmp_path):
  workdir, _ = finished
  for fields in ({}, {"lora__rank": 3, "ema__decay": 0.5}):
    config = tiny_run.config(pretrained=str(workdir), **fields)
    made = setup.create(config, tmp_path / str(len(fields)), tiny_run.splits())
    state = setup.initial_state(made)
    expected = by_name(run_weights.load(workdir).params)
    towers = by_name(made.towers(state.params))
    for name, leaf in expected.items():
      np.testing.assert_array_equal(towers[name], leaf, err_msg=name)
    if fields:
      averaged = by_name(state.ema)
      for name, leaf in by_name(made.select_trained(state.params)).items():
        np.testing.assert_array_equal(averaged[name], leaf)


@pytest.mark.integration
def test_the_average_with_the_initial_weights_replaces_the_raw_ones(finished, tmp_path):
  start, _ = finished
  # A mesh that splits the parameters: the average must be laid out as they are.
  fields = {"mesh__data": 2, "mesh__fsdp": 2, "ema__initial_share": 0.4}
  results = {}
  for weights in ("raw", "ema"):
    results[weights] = run(
      tmp_path / weights, pretrained=str(start), eval__weights=weights, **fields
    )
  # The training is the same: only what is scored differs.
  assert results["raw"]["digest"] == results["ema"]["digest"]
  assert [results[name]["last"]["weights"] for name in results] == ["raw", "ema"]
  # The best epoch may be another one, as it is chosen by the weights that are scored.
  scores = lambda of_epoch: {direction: of_epoch[direction] for direction in ("t2i", "i2t")}
  assert scores(results["ema"]["last"]) == scores(results["raw"]["ema"]["last"])
  assert "ema" not in results["ema"]
  splits = {line["split"] for line in tiny_run.metrics(tmp_path / "ema")}
  assert "val" in splits and "val_ema" not in splits

  initial = by_name(run_weights.load(start).params)
  trained, chosen = (
    by_name(run_weights.load(tmp_path / "ema", "last", weights).params) for weights in ("raw", "")
  )
  for name, leaf in chosen.items():
    share = 0.0 if name.endswith("token_embedding") else 0.4
    expected = share * initial[name] + (1 - share) * trained[name]
    np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=name)
  moved = [name for name in chosen if np.abs(chosen[name] - trained[name]).max() > 1e-4]
  assert moved
  # Without being told, search and conversion use what was scored.
  opened = Retriever.from_pretrained(tmp_path / "ema", "last")
  named = Retriever.from_pretrained(tmp_path / "ema", "last", weights="ema")
  assert opened.digest() == named.digest()
  convert.convert(tmp_path / "ema", tmp_path / "converted", "last")
  stored = Retriever.from_pretrained(tmp_path / "converted")
  captions = ["red coat", "black hat"]
  np.testing.assert_allclose(stored.embed_texts(captions), opened.embed_texts(captions), atol=1e-4)
  assert (
    f"{results['ema']['last']['t2i']['R1']:.2f}"
    in (tmp_path / "converted" / "README.md").read_text()
  )


@pytest.mark.integration
def test_the_better_weights_of_an_epoch_are_used(finished, tmp_path):
  start, _ = finished
  fields = {"ema__initial_share": 0.4, "pretrained": str(start), "num_epochs": 3}
  results = run(tmp_path, eval__weights="better", checkpoint__keep=5, **fields)
  found = {(line["epoch"], line["split"]): line for line in tiny_run.metrics(tmp_path)}
  scores = {
    epoch: {kind: found[epoch, f"val{suffix}"]["t2i"]["R1"] for kind, suffix in KINDS.items()}
    for epoch in (1, 2, 3)
  }
  for name in ("last", "best"):
    entry = results[name]
    of_epoch = scores[entry["epoch"]]
    assert of_epoch[entry["weights"]] == max(of_epoch.values())
    line = found[entry["epoch"], f"test{KINDS[entry['weights']]}"]
    assert entry["t2i"] == line["t2i"]
    loaded = run_weights.load(tmp_path, name)
    named = run_weights.load(tmp_path, name, entry["weights"])
    assert loaded.kind == entry["weights"] and loaded.step == entry["step"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, named.params)
  highest = max(value for of_epoch in scores.values() for value in of_epoch.values())
  assert results["best_by_split"]["val"]["epoch"] == results["best"]["epoch"]
  assert max(scores[results["best"]["epoch"]].values()) == highest
  again = evaluate.evaluate(
    tiny_run.config(**{"checkpoint__every_steps": 1, "eval__weights": "better"} | fields),
    tmp_path, Console(file=io.StringIO()), tiny_run.splits(),
  )  # fmt: skip
  for name in ("last", "best"):
    assert again[name] == results[name]
  convert.convert(tmp_path, tmp_path / "converted")
  card = (tmp_path / "converted" / "README.md").read_text()
  assert f"| text to image | {results['best']['t2i']['R1']:.2f} |" in card


@pytest.mark.integration
def test_a_run_without_an_average_says_so(tmp_path):
  run(tmp_path, num_epochs=1)
  with pytest.raises(UserError, match="holds no average of the weights") as error:
    run_weights.load(tmp_path, weights="ema")
  assert "\n" not in str(error.value)
  assert run_weights.kinds(tmp_path) == ("raw",)
  assert jnp.isfinite(run_weights.load(tmp_path).temperature)
