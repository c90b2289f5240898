"""Measurements on a tiny trained run, compared with independent computations."""

import io
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.errors import UserError
from dgia_jax.method import losses
from dgia_jax.method.augment import Masking
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.models.image_tower import ImageTower
from dgia_jax.reporting.console import Console
from dgia_jax.training import evaluate, train
from dgia_jax.training import setup as setup_lib
from experiments.paper.measures import (
  attention,
  complexity,
  cross_dataset,
  finished,
  loss_gradients,
  masked_queries,
  tsne,
)
from tests.helpers import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[ConfigDict, pathlib.Path, dict[str, PairTable], dict]:
  """Config, folder, splits and results of a run of five steps."""
  folder = tmp_path_factory.mktemp("tiny")
  config, splits = tiny_run.config(num_epochs=1, mesh__data=-1), tiny_run.splits()
  results = train.train(config, folder, Console(file=io.StringIO()), splits)
  return config, folder, splits, results


@pytest.fixture(scope="module")
def opened(trained) -> finished.OpenRun:
  """The last checkpoint of the run."""
  config, folder, splits, _ = trained
  return finished.open_run(config, folder, {"test": splits["test"]}, "last")


def test_unmasked_queries_give_the_scores_of_the_run(trained):
  config, folder, splits, results = trained
  test = {"test": splits["test"]}
  measured = masked_queries.measure(config, folder, test, "last", ratios=(0.0, 0.5), maskings=2)
  assert measured["scores"]["0.0"] == pytest.approx(results["last"]["t2i"], abs=1e-6)
  assert measured["step"] == results["last"]["step"]
  assert measured["scores"]["0.5"] != pytest.approx(measured["scores"]["0.0"], abs=1e-6)


def test_only_words_are_masked_with_the_given_probability():
  rng = np.random.default_rng(0)
  mask_id = 50
  tokens = rng.integers(1, mask_id, (400, 12))
  tokens[:, 0], tokens[:, 9], tokens[:, 10:] = mask_id + 1, mask_id + 2, 0
  masked = masked_queries.mask(jax.random.key(1), tokens, Masking.below(mask_id), 0.3)
  changed = masked != tokens
  assert (masked[changed] == mask_id).all()
  assert not changed[:, [0, 9, 10, 11]].any()
  assert changed[:, 1:9].mean() == pytest.approx(0.3, abs=0.03)
  assert changed[:, 1].mean() < 0.5  # the first word is not always masked


def test_cross_dataset_scores_use_the_gallery_of_the_other_dataset(trained):
  config, folder, splits, results = trained
  own = cross_dataset.measure(config, folder, {"test": splits["test"]}, "last")
  assert own["scores"] == pytest.approx(results["last"]["t2i"], abs=1e-6)
  other = tiny_run.splits(people=9, seed=5)["train"]
  measured = cross_dataset.measure(config, folder, {"test": other}, "last")
  sizes = (measured["queries"], measured["gallery"])
  assert sizes == (other.num_pairs, other.num_images) == (27, 18)
  assert measured["scores"] != pytest.approx(own["scores"], abs=1e-3)


def test_complexity_counts_and_times(trained, opened, monkeypatch):
  config, folder, splits, _ = trained
  config = config.copy_and_resolve_references()
  config.dataset.workers = 1
  workers, image_batches = [], batches_lib.image_batches

  def noting_workers(pairs, **options):
    workers.append(options.pop("workers"))
    return image_batches(pairs, **options, workers=0)

  monkeypatch.setattr(batches_lib, "image_batches", noting_workers)
  measured = complexity.measure(config, folder, {"test": splits["test"]}, "last")
  assert workers == [1, 0, 0]  # processes load the images, and none starts while embedding is timed
  num_params = sum(np.size(leaf) for leaf in jax.tree.leaves(opened.params))
  assert measured["params_M"] * 1e6 == num_params
  assert min(measured[name] for name in ("load_s", "embed_s", "rank_s")) > 0
  assert (measured["queries"], measured["gallery"]) == (18, 12)
  # 5 image tokens and 8 text tokens, 2 blocks, width 32, feature 16, patches of 8 x 8. The last
  # block computes keys and values (2 of 12 products) for all tokens and the rest for one.
  block = lambda tokens: tokens * 12 * 32**2 + 2 * tokens**2 * 32
  last_block = lambda tokens: (2 * tokens + 10) * 32**2 + 2 * tokens * 32
  tower = lambda tokens: block(tokens) + last_block(tokens) + 32 * 16
  assert measured["flops_G"] * 1e9 == pytest.approx(tower(5) + tower(8) + 4 * 192 * 32)


def test_projected_features_of_people(trained, opened):
  config, folder, splits, _ = trained
  pairs, projected = splits["test"], []

  def project(features: np.ndarray) -> np.ndarray:
    projected.append(features)
    return features[:, :2]

  measured = tsne.measure(config, folder, {"test": pairs}, "last", people=3, project=project)
  images, texts = evaluate.Evaluator(opened.setup).embed(opened.params, pairs)
  np.testing.assert_allclose(np.linalg.norm(projected[0], axis=1), 1.0, rtol=1e-5)
  chosen = tsne.chosen_people(pairs.person_of_image_M, 3)
  assert {point["person"] for point in measured["points"]} == set(chosen.tolist())
  kinds = [point["kind"] for point in measured["points"]]
  assert (kinds.count("image"), kinds.count("text")) == (6, 9)
  first = np.flatnonzero(pairs.person_of_image_M == chosen[0])[0]
  expected = images[first] / np.linalg.norm(images[first])
  np.testing.assert_allclose(projected[0][0], expected, rtol=1e-5)
  last = np.flatnonzero(pairs.person_of_pair_N == chosen[-1])[-1]
  np.testing.assert_allclose(
    [measured["points"][-1][axis] for axis in "xy"],
    texts[last][:2] / np.linalg.norm(texts[last]),
    rtol=1e-4,
  )


def test_people_with_several_images_come_first():
  assert tsne.chosen_people(np.array([4, 4, 5, 6, 6, 7, 7]), 2).tolist() == [4, 7]
  assert tsne.chosen_people(np.array([4, 5]), 5).tolist() == [4, 5]


def test_missing_scikit_learn_is_one_line_with_the_install_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
  with pytest.raises(UserError, match=r"pip install -e \"\.\[experiments\]\""):
    tsne.load_tsne()


def test_tsne_keeps_groups_together():
  pytest.importorskip("sklearn", reason='needs pip install -e ".[experiments]"')
  rng = np.random.default_rng(0)
  groups = np.concatenate([rng.normal(i, 0.01, (8, 5)) for i in (0, 5)])
  points = tsne.load_tsne()(groups)
  radius = np.linalg.norm(points[:8] - points[:8].mean(0), axis=1).max()
  assert np.linalg.norm(points[:8].mean(0) - points[8:].mean(0)) > radius


@pytest.fixture(scope="module")
def tower(opened) -> ImageTower:
  return nnx.merge(opened.setup.graphdef, jax.device_get(opened.params)).image


@pytest.fixture
def pixels(trained) -> jax.Array:
  return pixels_lib.normalize_pixels(jnp.asarray(trained[2]["test"].images[3])[None])


def test_the_forward_pass_with_attention_equals_the_models(tower, pixels):
  zeros = jnp.zeros((2, 2, 5, 5))
  feature, weights = attention.image_feature(tower, pixels, zeros)
  np.testing.assert_allclose(feature, tower(pixels)[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
  changed, _ = attention.image_feature(tower, pixels, zeros.at[0, 0, 0, 2].set(0.5))
  assert np.abs(changed - feature).max() > 1e-4


def test_relevance_equals_a_rollout_with_loops(tower, pixels, rng):
  """Chefer et al., equations 5 and 6, with loops and numerical gradients."""
  direction = rng.normal(size=16).astype(np.float32)

  @jax.jit
  def score(change: jax.Array) -> tuple[jax.Array, jax.Array]:
    feature, weights = attention.image_feature(tower, pixels, change)
    return feature @ direction / jnp.linalg.norm(feature), weights

  zeros = np.zeros((2, 2, 5, 5), np.float32)
  weights = np.asarray(score(zeros)[1], np.float64)
  total = np.eye(5)
  for layer in range(2):
    mean = np.zeros((5, 5))
    for head, row, column in np.ndindex(2, 5, 5):
      values = []
      for step in (1e-2, -1e-2):
        change = zeros.copy()
        change[layer, head, row, column] = step
        values.append(float(score(change)[0]))
      gradient = (values[0] - values[1]) / 2e-2
      mean[row, column] += max(gradient * weights[layer, head, row, column], 0.0) / 2
    total = total + mean @ total
  expected = total[0, 1:] / total[0, 1:].sum()
  relevance = attention.patch_relevance(*nnx.split(tower), pixels, jnp.asarray(direction))
  np.testing.assert_allclose(relevance, expected, atol=0.02)
  assert np.ptp(expected) > 0.05
  no_relevance = attention.patch_relevance(*nnx.split(tower), pixels, jnp.zeros(16))
  np.testing.assert_array_equal(no_relevance, 0.0)


def test_spans_of_words_are_their_tokens(opened):
  tokenizer = opened.setup.tokenizer
  caption = "red shoes  Blue"
  tokens = tokenizer.encode([caption])[0]
  spans = attention.word_spans(tokenizer, caption)
  assert [word for word, _, _ in spans] == ["red", "shoes", "Blue"]
  for word, start, end in spans:
    alone = tokenizer.encode([word])[0]
    np.testing.assert_array_equal(tokens[start:end], alone[1 : 1 + end - start])
  assert spans[0][1] == 1 and tokens[spans[-1][2]] == tokenizer.end_id
  cut = attention.word_spans(tokenizer, "red " * 50)
  assert max(end for _, _, end in cut) == tokenizer.context_length - 1


def test_the_words_that_add_most_are_chosen(trained, opened):
  config, folder, splits, _ = trained
  pairs = splits["test"]
  measured = attention.measure(config, folder, {"test": pairs}, "last", captions=2, words=2)
  assert [example["caption"] for example in measured["examples"]] == [
    pairs.captions[0], pairs.captions[-1],
  ]  # fmt: skip
  tokenizer = opened.setup.tokenizer
  model = nnx.merge(opened.setup.graphdef, jax.device_get(opened.params))
  example = measured["examples"][1]
  np.testing.assert_array_equal(attention.decode_image(example["image"]), pairs.images[-1])
  image = model.encode_image(pixels_lib.normalize_pixels(jnp.asarray(pairs.images[-1])[None]))
  tokens = tokenizer.encode([example["caption"]])
  cosine = lambda ids: float(losses.cosine(model.encode_text(jnp.asarray(ids)), image)[0, 0])
  adds = {}
  for word, start, end in attention.word_spans(tokenizer, example["caption"]):
    masked = tokens.copy()
    masked[0, start:end] = tokenizer.mask_id
    adds[word] = cosine(tokens) - cosine(masked)
  assert [word["word"] for word in example["words"]] == sorted(adds, key=adds.get)[::-1][:2]
  assert example["cosine"] == pytest.approx(cosine(tokens), abs=1e-5)
  for word in example["words"]:
    assert word["adds"] == pytest.approx(adds[word["word"]], abs=1e-5)
    relevance = np.asarray(word["relevance"])
    assert relevance.shape == (2, 2) and relevance.min() >= 0
    assert relevance.sum() == pytest.approx(1.0, abs=1e-4) or not relevance.any()


def test_gradients_of_the_single_losses_add_up_to_that_of_a_step(trained):
  config, folder, splits, _ = trained
  setup = setup_lib.create(config, folder, splits)
  state = loss_gradients.without_optimizer(setup, setup_lib.initial_state(setup))
  batch = next(train.global_batches(setup, setup.tokenizer.encode(splits["train"].captions), 0))
  state = state.replace(step=state.step + 2 * setup.steps_per_epoch)  # all losses have started
  gradient_of = lambda weights: loss_gradients.gradient_step(setup, weights)(state, batch)[1]
  single = [gradient_of({name: 2.0}) for name in config.loss.weights]
  whole = gradient_of(dict.fromkeys(config.loss.weights, 2.0))
  np.testing.assert_allclose(sum(single), whole, atol=1e-4 * np.abs(whole).max())
  assert all(np.abs(gradient).max() > 0 for gradient in single)


@pytest.mark.integration
def test_sizes_of_the_losses_before_and_after_a_training(trained):
  config, folder, splits, _ = trained
  measured = loss_gradients.measure(config, folder, splits, "last", num_batches=2)
  assert measured.keys() == {"start", "end"}
  for by_loss in measured.values():
    assert set(by_loss) == set(config.loss.weights)
    assert by_loss["itc"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert all(abs(of_loss["cosine"]) <= 1.00001 for of_loss in by_loss.values())
    assert all(of_loss["gradient_norm"] > 0 for of_loss in by_loss.values())
