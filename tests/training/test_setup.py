import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax import sharding
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.method import augment, train_state
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.reporting import console
from dgia_jax.training import checkpoint, setup, setup_checks, train
from dgia_jax.training import workdir as workdir_lib
from tests.helpers import tiny_run

ALL_DEVICES = dict(mesh__data=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  config = tiny_run.config(**ALL_DEVICES)
  return setup.create(config, tmp_path_factory.mktemp("run"), tiny_run.splits())


@pytest.mark.parametrize("batch_size, fits", [(8, True), (16, True), (4, False), (12, False)])
def test_check_batch(batch_size, fits):
  mesh = sharding.create_mesh(data=4, fsdp=2)
  config = tiny_run.config(batch_size=batch_size)
  if fits:
    setup_checks.check_batch(config, mesh)
  else:
    with pytest.raises(UserError, match=rf"config.batch_size={batch_size} .* = 8 device"):
      setup_checks.check_batch(config, mesh)


@pytest.mark.parametrize("count", [5, 7])
def test_devices_that_cannot_share_the_bank_are_refused(count, tmp_path, monkeypatch):
  setup_checks.check_devices(sharding.create_mesh(devices=jax.devices()[:6]))
  few = sharding.create_mesh(devices=jax.devices()[:count])
  monkeypatch.setattr(sharding, "create_mesh", lambda **settings: few)
  with pytest.raises(
    UserError, match=f"= {count} device.*use {count - 1} .*1, 2, 3, 4, 6"
  ) as caught:
    setup.create(tiny_run.config(batch_size=2 * count), tmp_path, tiny_run.splits())
  assert "\n" not in str(caught.value)


def test_check_batch_divides_the_rows_of_a_device_by_accumulation():
  mesh = sharding.create_mesh(data=4, fsdp=2)
  setup_checks.check_batch(tiny_run.config(batch_size=32, gradient_accumulation=4), mesh)
  with pytest.raises(UserError, match=r"gradient_accumulation=8 .* the 4 pair.* = 8 device"):
    setup_checks.check_batch(tiny_run.config(batch_size=32, gradient_accumulation=8), mesh)


def test_check_batch_ignores_the_tensor_axis():
  setup_checks.check_batch(
    tiny_run.config(batch_size=6), sharding.create_mesh(data=2, fsdp=1, tensor=4)
  )


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"batch_size": 12}, "config.batch_size=12"),
    ({"loss__temperature": 0.0}, "config.loss.temperature"),
    ({"mesh__data": 3}, "mesh.data=3"),
    ({"model__name": "huge"}, "model.name 'huge' is not one of .*vit_b_16"),
    ({"dataset__image_size": (16, 20)}, r"dataset.image_size \(16, 20\).*patch size 8"),
  ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, fields, message):
  with pytest.raises(UserError, match=message) as caught:
    setup.create(tiny_run.config(**ALL_DEVICES | fields), tmp_path, tiny_run.splits())
  assert "\n" not in str(caught.value)


def test_a_stored_run_may_break_the_rules_for_new_ones(tmp_path):
  config = tiny_run.config(**ALL_DEVICES, caption_exchange__prob=0.5, bank__gate="pair")
  with pytest.raises(UserError, match="caption_exchange.prob=0.5"):
    setup.create(config, tmp_path, tiny_run.splits())
  setup.create(tiny_run.config(**ALL_DEVICES), tmp_path, tiny_run.splits())  # its vocabulary
  workdir_lib.claim(tmp_path, config)
  assert setup.create(config, tmp_path, tiny_run.splits()).config == config


@pytest.mark.parametrize("frozen", ["freeze.text_blocks", "lora.rank"])
def test_new_words_need_a_text_tower_that_learns_them(frozen):
  fields = {"tokenizer__new_words": 3, frozen.replace(".", "__"): 1}
  with pytest.raises(UserError, match=f"config.tokenizer.new_words=3: .*config.{frozen}=1"):
    setup_checks.check_trainable(tiny_run.config(pretrained="mini", **fields))
  # Where no words are added, nothing is missing.
  setup_checks.check_trainable(tiny_run.config(**fields))
  published = {"pretrained": "x", "tokenizer__name": "openai/clip-vit-base-patch16"}
  setup_checks.check_trainable(tiny_run.config(**published, **fields))


def test_number_of_steps(run):
  """36 pairs in batches of 8 take 5 steps, the last with 4 pairs; 3 epochs take 15."""
  assert run.train_pairs is run.splits["train"] and run.train_pairs.num_pairs == 36
  assert (run.steps_per_epoch, run.total_steps) == (5, 15)


def parameter_count(size, image_size, context_length, vocab_size):
  """The number of parameters, computed from the architecture."""

  def tower(width, depth):
    attention = width * 3 * width + 3 * width + width * width + width
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    return depth * (attention + mlp + 2 * 2 * width)

  image, text = size.image, size.text
  patches = (image_size[0] // size.patch_size) * (image_size[1] // size.patch_size)
  return (
    tower(image.width, image.depth)
    + tower(text.width, text.depth)
    + 3 * size.patch_size**2 * image.width  # patch embedding, no bias
    + (1 + 1 + patches) * image.width  # class token, positions
    + 2 * 2 * image.width  # norms before and after
    + (vocab_size + context_length) * text.width
    + 2 * text.width
    + (image.width + text.width) * size.feature_width
  )


def test_the_initial_state_has_the_models_parameters(run):
  state = jax.eval_shape(setup.state_initializer(run))
  sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
  assert sum(sizes) == parameter_count(tiny_run.SIZE, (16, 16), 8, run.tokenizer.vocab_size)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  assert state.bank.image.shape == (3072, 16)


def test_vit_b_16_has_the_number_of_parameters_that_the_paper_states():
  """149.6 M for ViT-B/16 at 384 x 128."""
  size = dual_encoder.SIZES["vit_b_16"]
  assert parameter_count(size, (384, 128), 77, 49408) == pytest.approx(149.6e6, rel=1e-3)


@pytest.mark.parametrize("full", [False, True])
def test_the_last_block_can_be_computed_in_full(full):
  model = setup.create_model(tiny_run.config(model__full_last_block=full), 300)
  assert model.image.backend.full_last_block == model.text.backend.full_last_block == full


def test_encode_uses_the_parameters_it_is_given(run, rng):
  model = setup.create_model(run.config, run.tokenizer.vocab_size)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  pixels = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
  tokens = run.tokenizer.encode(run.train_pairs.captions[:3])
  encode = jax.jit(run.encode)
  image, text = encode(params, pixels, tokens)
  assert image.shape == text.shape == (3, 16)
  direct = jax.jit(lambda: (model.encode_image(pixels), model.encode_text(tokens)))()
  np.testing.assert_allclose(image, direct[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(text, direct[1], rtol=1e-5, atol=1e-6)
  assert np.any(image) and np.any(text)
  zeros = encode(jax.tree.map(jnp.zeros_like, params), pixels, tokens)
  assert not np.any(zeros[0]) and not np.any(zeros[1])


def test_pretrained_weights_are_sharded_like_the_initial_ones(run, monkeypatch):
  arguments = {}

  def load_pretrained(name, params, *, image_size, family):
    arguments.update(name=name, image_size=image_size, family=family.name)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    return types.SimpleNamespace(params=ones, dropped=["logit_scale"])

  monkeypatch.setattr(pretrained, "load_pretrained", load_pretrained)
  config = tiny_run.config(pretrained="some/clip")
  changed = dataclasses.replace(run, config=config, mesh=sharding.create_mesh(2, 2, 2))
  abstract = jax.eval_shape(setup.state_initializer(changed)).params
  params, unused = setup.load_pretrained(changed, abstract)
  assert arguments == {"name": "some/clip", "image_size": (16, 16), "family": "CLIP"}
  assert unused == ["logit_scale"]
  expected = jax.tree.leaves(sharding.parameters(changed.mesh, abstract))
  for leaf, layout in zip(jax.tree.leaves(params), expected, strict=True):
    assert leaf.sharding == layout and np.all(leaf == 1)
  assert any(not layout.is_fully_replicated for layout in expected)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  train.train(
    tiny_run.config(num_epochs=1, **ALL_DEVICES),
    folder,
    console.Console(active=False),
    tiny_run.splits(),
  )
  return folder


@pytest.mark.integration
def test_a_run_starts_from_the_weights_and_vocabulary_of_another(finished_run, tmp_path):
  config = tiny_run.config(pretrained=str(finished_run), **ALL_DEVICES)
  splits = tiny_run.splits()
  splits["train"].captions[:] = ["qqqq zzzz"] * 36  # another vocabulary would be learned from these
  parts = setup.create(config, tmp_path, splits)
  vocabulary = tokenizer_lib.load_tokenizer(finished_run / workdir_lib.TOKENIZER)
  captions = tiny_run.splits()["train"].captions
  np.testing.assert_array_equal(parts.tokenizer.encode(captions), vocabulary.encode(captions))
  fresh = train_state.create(parts.mesh, setup.state_initializer(parts)).params
  loaded, unused = setup.load_pretrained(parts, fresh)
  _, expected, _ = checkpoint.restore_params(finished_run)
  assert unused == ()
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), expected)
  assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(lambda x: x.sharding, fresh)


@pytest.mark.integration
def test_a_run_of_another_model_is_refused(finished_run, tmp_path):
  config = tiny_run.config(
    pretrained=str(finished_run), dataset__image_size=(32, 16), **ALL_DEVICES
  )
  parts = setup.create(config, tmp_path, tiny_run.splits())
  fresh = train_state.create(parts.mesh, setup.state_initializer(parts)).params
  with pytest.raises(UserError, match="another model.*position_embedding.*dgia_jax.convert"):
    setup.load_pretrained(parts, fresh)
  config = tiny_run.config(pretrained=str(finished_run), tokenizer__context_length=9, **ALL_DEVICES)
  with pytest.raises(UserError, match="context_length=9.*has 8"):
    setup.create(config, tmp_path / "other", tiny_run.splits())


def test_seed_decides_the_initial_weights():
  models = [setup.create_model(tiny_run.config(seed=seed), 300) for seed in (0, 0, 1)]
  first, same, other = (model.image.projection[...] for model in models)
  np.testing.assert_array_equal(first, same)
  assert not np.array_equal(first, other)


def test_optimizer_gets_every_setting_of_the_recipe():
  """Takes two steps with a recipe in which every number affects the result."""
  config = tiny_run.config(
    num_epochs=10, optimizer__learning_rate=0.3, optimizer__warmup_epochs=4,
    optimizer__betas=(0.5, 0.75), optimizer__epsilon=0.1, optimizer__weight_decay=0.2,
    optimizer__decoupled=True, optimizer__bias_lr_multiplier=3.0, optimizer__lr_update="step",
  )  # fmt: skip
  tx = setup.create_optimizer(config, steps_per_epoch=2)
  params = {"kernel": jnp.full(1, 2.0), "bias": jnp.full(1, 2.0)}
  state, gradients = tx.init(params), jax.tree.map(jnp.ones_like, params)
  for _ in range(2):
    updates, state = tx.update(gradients, state, params)
  rate = 0.3 * (0.1 * 7 / 8 + 1 / 8)  # the second step is half an epoch into the warm-up
  direction = 1 / (1 + 0.1)
  assert updates["kernel"][0] == pytest.approx(-rate * (direction + 0.2 * 2.0), rel=1e-5)
  assert updates["bias"][0] == pytest.approx(-3 * rate * direction, rel=1e-5)
  moments = next(part for part in state if hasattr(part, "mu"))
  assert moments.mu["kernel"][0] == 0.75 and moments.nu["kernel"][0] == 1 - 0.75**2
  half = setup.create_optimizer(tiny_run.config(optimizer__second_moment="float16"), 2)
  assert jnp.dtype("float16") in {leaf.dtype for leaf in jax.tree.leaves(half.init(params))}


def test_learning_rates_of_every_step(run):
  """Two epochs of warm-up and two of cosine, with two steps per epoch."""
  config = tiny_run.config(
    batch_size=18, num_epochs=4, optimizer__learning_rate=1.0, optimizer__warmup_epochs=2,
    optimizer__lr_update="epoch",
  )  # fmt: skip
  parts = dataclasses.replace(run, config=config)
  rates = [0.1, 0.1, 0.55, 0.55, 1.0, 1.0, 0.5, 0.5]
  np.testing.assert_allclose(parts.learning_rates(), rates, rtol=1e-6)
  parts.config.optimizer.lr_update = "step"
  half_way = 0.5 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75])))
  np.testing.assert_allclose(parts.learning_rates()[4:], half_way, rtol=1e-6)
  assert [parts.epoch_of(step) for step in (1, 2, 3, 8)] == [1, 1, 2, 4]


def test_losses_start_in_their_epochs_unless_their_weight_is_zero():
  config = tiny_run.config(
    local_association__start_epoch=3, global_association__start_epoch=2,
    loss__weights__consistency=0.0,
  )  # fmt: skip
  assert [setup.losses_starting(config, epoch) for epoch in (1, 2, 3, 4)] == [
    ["itc"], ["global"], ["local"], [],
  ]  # fmt: skip


def test_create_step_binds_the_run(run):
  step = setup.create_step(run, mine_local="replaced")
  assert step.keywords["mine_local"] == "replaced"
  assert step.keywords["masking"] == augment.Masking.below(run.tokenizer.mask_id)
  assert step.keywords["steps_per_epoch"] == 5
  mine_global = step.keywords["mine_global"]
  assert mine_global.keywords["same_image_rows"] == 1  # images have up to two captions


def test_new_words_start_from_their_pieces_and_change_nothing_else(shipped_mini, tmp_path):
  fields = dict(pretrained="mini", model__name="tiny", tokenizer__context_length=16, **ALL_DEVICES)
  splits = tiny_run.splits()
  words = sorted(set(" ".join(splits["train"].captions).split()))
  plain, larger = (
    setup.create(tiny_run.config(tokenizer__new_words=count, **fields), tmp_path / name, splits)
    for name, count in (("plain", 0), ("larger", 5))
  )
  pieces = [plain.tokenizer.pieces(word) for word in words]
  assert {len(ids) > 1 for ids in pieces} == {True, False}
  expected, params = (setup.initial_state(run).params for run in (plain, larger))
  table, stored = (np.asarray(tree["text"]["token_embedding"]) for tree in (params, expected))
  for word, ids in zip(words, pieces, strict=True):
    (token,) = larger.tokenizer.pieces(word)
    np.testing.assert_allclose(table[token], stored[ids].mean(axis=0), atol=1e-7)
  # A caption of known words has the same feature, special tokens included.
  known = " ".join(word for word, ids in zip(words, pieces, strict=True) if len(ids) == 1)
  blank = jnp.zeros((8, 16, 16, 3))
  before, after = (
    run.encode(tree, blank, jnp.asarray(run.tokenizer.encode([known] * 8)))[1]
    for run, tree in ((plain, expected), (larger, params))
  )
  np.testing.assert_array_equal(before, after)
  mask, replaced = plain.tokenizer.mask_id, larger.tokenizer.mask_id
  np.testing.assert_array_equal(table[replaced:], stored[mask:])
