"""Measures on a tiny run that was really trained, against independent computations."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgia_jax.errors import UserError
from dgia_jax.method import losses
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.reporting.console import Console
from dgia_jax.training import evaluate, train
from experiments.paper.measures import (
  attention,
  complexity,
  cross_dataset,
  finished,
  masked_queries,
  tsne,
)
from tests.helpers import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Config, folder, splits and results of a run of five steps."""
  folder = tmp_path_factory.mktemp("tiny")
  config, splits = tiny_run.config(num_epochs=1, mesh__data=-1), tiny_run.splits()
  results = train.train(config, folder, Console(file=io.StringIO()), splits)
  return config, folder, splits, results


@pytest.fixture(scope="module")
def opened(trained):
  """Run and parameters."""
  config, folder, splits, _ = trained
  return finished.open_run(config, folder, {"test": splits["test"]}, "last")[:2]


def test_masked_queries_without_masks_score_as_the_run_did(trained):
  config, folder, splits, results = trained
  test = {"test": splits["test"]}
  found = masked_queries.measure(config, folder, test, "last", ratios=(0.0, 0.5), maskings=2)
  assert found["scores"]["0.0"] == pytest.approx(results["last"]["t2i"], abs=1e-6)
  assert found["step"] == results["last"]["step"]
  assert found["scores"]["0.5"] != pytest.approx(found["scores"]["0.0"], abs=1e-6)


def test_masking_hides_words_alone_and_as_many_as_asked():
  rng = np.random.default_rng(0)
  mask_id = 50
  tokens = rng.integers(1, mask_id, (400, 12))
  tokens[:, 0], tokens[:, 9], tokens[:, 10:] = mask_id + 1, mask_id + 2, 0
  masked = masked_queries.mask(jax.random.key(1), tokens, mask_id, 0.3)
  changed = masked != tokens
  assert (masked[changed] == mask_id).all()
  assert not changed[:, [0, 9, 10, 11]].any()
  assert changed[:, 1:9].mean() == pytest.approx(0.3, abs=0.03)
  assert changed[:, 1].mean() < 0.5  # the first word is a word like any other


def test_across_datasets_the_gallery_is_the_others(trained):
  config, folder, splits, results = trained
  own = cross_dataset.measure(config, folder, {"test": splits["test"]}, "last")
  assert own["scores"] == pytest.approx(results["last"]["t2i"], abs=1e-6)
  other = tiny_run.splits(people=9, seed=5)["train"]
  found = cross_dataset.measure(config, folder, {"test": other}, "last")
  assert (found["queries"], found["gallery"]) == (other.num_pairs, other.num_images) == (27, 18)
  assert found["scores"] != pytest.approx(own["scores"], abs=1e-3)


def test_complexity_counts_and_times(trained, opened):
  config, folder, splits, _ = trained
  found = complexity.measure(config, folder, {"test": splits["test"]}, "last")
  _, params = opened
  assert found["params_M"] * 1e6 == sum(np.size(leaf) for leaf in jax.tree.leaves(params))
  assert min(found[name] for name in ("load_s", "embed_s", "rank_s")) > 0
  assert (found["queries"], found["gallery"]) == (18, 12)
  # By hand: 5 image tokens and 8 text tokens, 2 blocks, width 32, feature 16, patches of 8 x 8.
  tower = lambda tokens: 2 * (tokens * 12 * 32**2 + 2 * tokens**2 * 32) + 32 * 16
  assert found["flops_G"] * 1e9 == pytest.approx(tower(5) + tower(8) + 4 * 192 * 32)


def test_people_on_a_plane(trained, opened):
  config, folder, splits, _ = trained
  pairs, given = splits["test"], []

  def project(features):
    given.append(features)
    return features[:, :2]

  found = tsne.measure(config, folder, {"test": pairs}, "last", people=3, project=project)
  parts, params = opened
  images, texts = evaluate.Evaluator(parts).embed(params, pairs)
  np.testing.assert_allclose(np.linalg.norm(given[0], axis=1), 1.0, rtol=1e-5)
  chosen = tsne.chosen_people(pairs.person_of_image_M, 3)
  assert {point["person"] for point in found["points"]} == set(chosen.tolist())
  kinds = [point["kind"] for point in found["points"]]
  assert (kinds.count("image"), kinds.count("text")) == (6, 9)
  first = np.flatnonzero(pairs.person_of_image_M == chosen[0])[0]
  expected = images[first] / np.linalg.norm(images[first])
  np.testing.assert_allclose(given[0][0], expected, rtol=1e-5)
  last = np.flatnonzero(pairs.person_of_pair_N == chosen[-1])[-1]
  np.testing.assert_allclose(
    [found["points"][-1][axis] for axis in "xy"],
    texts[last][:2] / np.linalg.norm(texts[last]),
    rtol=1e-4,
  )


def test_people_with_several_images_come_first():
  assert tsne.chosen_people(np.array([4, 4, 5, 6, 6, 7, 7]), 2).tolist() == [4, 7]
  assert tsne.chosen_people(np.array([4, 5]), 5).tolist() == [4, 5]


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
  with pytest.raises(UserError, match=r"pip install -e \"\.\[experiments\]\""):
    tsne.load_tsne()


def test_tsne_keeps_groups_together():
  pytest.importorskip("sklearn", reason='needs pip install -e ".[experiments]"')
  rng = np.random.default_rng(0)
  groups = np.concatenate([rng.normal(i, 0.01, (8, 5)) for i in (0, 5)])
  place = tsne.load_tsne()(groups)
  inside = np.linalg.norm(place[:8] - place[:8].mean(0), axis=1).max()
  assert np.linalg.norm(place[:8].mean(0) - place[8:].mean(0)) > inside


@pytest.fixture(scope="module")
def tower(opened):
  parts, params = opened
  return nnx.merge(parts.graphdef, jax.device_get(params)).image


@pytest.fixture
def pixels(trained):
  return pixels_lib.normalize_pixels(jnp.asarray(trained[2]["test"].images[3])[None])


def test_the_opened_forward_pass_is_the_models_own(tower, pixels):
  zeros = jnp.zeros((2, 2, 5, 5))
  feature, weights = attention.image_feature(tower, pixels, zeros)
  np.testing.assert_allclose(feature, tower(pixels)[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
  changed, _ = attention.image_feature(tower, pixels, zeros.at[0, 0, 0, 2].set(0.5))
  assert np.abs(changed - feature).max() > 1e-4


def test_relevance_is_the_rollout_by_hand(tower, pixels, rng):
  """Chefer et al., equations 5 and 6, written out with loops and numerical gradients."""
  direction = rng.normal(size=16).astype(np.float32)

  @jax.jit
  def score(change):
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
  found = attention.patch_relevance(*nnx.split(tower), pixels, jnp.asarray(direction))
  np.testing.assert_allclose(found, expected, atol=0.02)
  assert np.ptp(expected) > 0.05
  nothing = attention.patch_relevance(*nnx.split(tower), pixels, jnp.zeros(16))
  np.testing.assert_array_equal(nothing, 0.0)


def test_spans_of_words_are_their_tokens(opened):
  words = opened[0].tokenizer
  caption = "red shoes  Blue"
  tokens = words.encode([caption])[0]
  spans = attention.word_spans(words, caption)
  assert [word for word, _, _ in spans] == ["red", "shoes", "Blue"]
  for word, start, end in spans:
    alone = words.encode([word])[0]
    np.testing.assert_array_equal(tokens[start:end], alone[1 : 1 + end - start])
  assert spans[0][1] == 1 and tokens[spans[-1][2]] == words.end_id
  cut = attention.word_spans(words, "red " * 50)
  assert max(end for _, _, end in cut) == words.context_length - 1


def test_words_are_those_that_add_most(trained, opened):
  config, folder, splits, _ = trained
  pairs = splits["test"]
  found = attention.measure(config, folder, {"test": pairs}, "last", captions=2, words=2)
  assert [example["caption"] for example in found["examples"]] == [
    pairs.captions[0], pairs.captions[-1],
  ]  # fmt: skip
  parts, params = opened
  model = nnx.merge(parts.graphdef, jax.device_get(params))
  example = found["examples"][1]
  np.testing.assert_array_equal(attention.decode_image(example["image"]), pairs.images[-1])
  image = model.encode_image(pixels_lib.normalize_pixels(jnp.asarray(pairs.images[-1])[None]))
  tokens = parts.tokenizer.encode([example["caption"]])
  cosine = lambda ids: float(losses.cosine(model.encode_text(jnp.asarray(ids)), image)[0, 0])
  adds = {}
  for word, start, end in attention.word_spans(parts.tokenizer, example["caption"]):
    masked = tokens.copy()
    masked[0, start:end] = parts.tokenizer.mask_id
    adds[word] = cosine(tokens) - cosine(masked)
  assert [word["word"] for word in example["words"]] == sorted(adds, key=adds.get)[::-1][:2]
  assert example["cosine"] == pytest.approx(cosine(tokens), abs=1e-5)
  for word in example["words"]:
    assert word["adds"] == pytest.approx(adds[word["word"]], abs=1e-5)
    relevance = np.asarray(word["relevance"])
    assert relevance.shape == (2, 2) and relevance.min() >= 0
    assert relevance.sum() == pytest.approx(1.0, abs=1e-4) or not relevance.any()
