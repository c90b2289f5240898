"""Embed a split on the mesh, rank it both ways, and report on a finished run."""

import functools
import time

import jax
import numpy as np
from flax import nnx

from dgia_jax import distributed, files, sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.errors import UserError
from dgia_jax.method import losses
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.reporting import contact_sheet
from dgia_jax.training import checkpoint, retrieval_metrics
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import workdir as workdir_lib

SHEET_QUERIES = 10
SHEET_IMAGES = 10


class Evaluator:
  """Embeds and scores splits; each tower is compiled once, on first use.

  Args:
    run: the Run.
  """

  def __init__(self, run):
    self._run = run
    shards = sharding.batch_shards(run.mesh)
    self._batch_size = -(-run.config.eval.batch_size // shards) * shards
    parameters = sharding.parameters(run.mesh, jax.eval_shape(setup_lib.init_state(run)).params)

    def compiled(function):
      return jax.jit(
        function,
        in_shardings=(parameters, sharding.batch(run.mesh)),
        out_shardings=sharding.replicated(run.mesh),
      )

    model = lambda params: nnx.merge(run.graphdef, params)
    self._embed_images = compiled(
      lambda params, images: model(params).encode_image(pixels_lib.normalize_pixels(images))
    )
    self._embed_texts = compiled(lambda params, tokens: model(params).encode_text(tokens))

  def embed(self, params, pairs):
    """Features of a split, on the host.

    Args:
      params: parameters, laid out on the run's mesh.
      pairs: PairTable.

    Returns:
      (M, D) float32 of its images and (N, D) float32 of its captions.
    """
    tokens_NxL = self._run.tokenizer.encode(pairs.captions)
    return self.embed_images(params, pairs), self.embed_tokens(params, tokens_NxL)

  def embed_images(self, params, pairs):
    """(M, D) float32 features of a split's images, on the host."""
    images = batches_lib.image_batches(
      pairs,
      batch_size=self._batch_size,
      workers=self._run.config.dataset.workers,
      rows=sharding.batch_rows(self._run.mesh, self._batch_size),
    )
    return self._collect(self._embed_images, params, images, "image", pairs.num_images)

  def embed_tokens(self, params, tokens_NxL):
    """(N, D) float32 features of encoded captions, on the host."""
    rows = sharding.batch_rows(self._run.mesh, self._batch_size)
    batches = batches_lib.token_batches(tokens_NxL, batch_size=self._batch_size, rows=rows)
    return self._collect(self._embed_texts, params, batches, "tokens", len(tokens_NxL))

  def _collect(self, embed, params, batches, field, count):
    # Batches come in order and only the last is padded, so cutting to `count` undoes the padding.
    mesh, size = self._run.mesh, self._batch_size
    place = lambda batch: sharding.global_batch(mesh, batch[field], size)
    features = [embed(params, place(batch)) for batch in batches]
    return np.concatenate(jax.device_get(features))[:count]

  def score(self, params, split):
    """Retrieval scores of a split, captions as queries ("t2i") and images as queries ("i2t").

    Returns:
      {"t2i": {...}, "i2t": {...}} as `metrics.retrieval_metrics`, and the features (images, texts).
    """
    pairs = self._run.splits[split]
    images_MxD, texts_NxD = self.embed(params, pairs)
    image_ids, text_ids = pairs.person_of_image_M, pairs.person_of_pair_N
    mesh = self._run.mesh
    if distributed.several():  # every process has all features: it ranks on its own devices
      mesh = sharding.create_mesh(devices=jax.local_devices())
    layouts = (sharding.batch(mesh), sharding.replicated(mesh))
    ranked = functools.partial(retrieval_metrics.retrieval_metrics_from_features, layouts=layouts)
    scores = {
      "t2i": ranked(texts_NxD, images_MxD, text_ids, image_ids),
      "i2t": ranked(images_MxD, texts_NxD, image_ids, text_ids),
    }
    return scores, (images_MxD, texts_NxD)


def evaluate(config, workdir, console, splits=None):
  """`--mode evaluate`: scores the last and the best checkpoint of a run anew.

  Args:
    config: the resolved config of the run.
    workdir: the run's folder.
    console: console.Console.
    splits: as in `setup.create`.

  Returns:
    What it writes to results.json.

  Raises:
    UserError: the folder holds no finished checkpoint, or another config's run.
  """
  workdir_lib.read_config(workdir)
  workdir_lib.check(workdir, config)
  if not checkpoint.steps_saved(workdir):
    raise UserError(f"--workdir={workdir}: no complete checkpoint to evaluate; train first")
  run = setup_lib.create(config, workdir, splits)
  distributed.meet()
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    return report(run, checkpoints, console)
  finally:
    checkpoints.close()


def report(run, checkpoints, console):
  """Scores the last and the best checkpoint on test, as read back from disk, and writes it down.

  Writes results.json and, when configured, the contact sheet of the best.

  Returns:
    What results.json holds.
  """
  start = time.time()
  evaluator = Evaluator(run)
  abstract = jax.eval_shape(setup_lib.init_state(run))
  pairs = run.splits["test"]
  results = {}
  for name, step in (("last", checkpoints.latest()), ("best", checkpoints.best())):
    if step is None:
      continue
    state, record = checkpoints.restore(step, run.mesh, abstract)
    scores, features = evaluator.score(state.params, "test")
    results[name] = {"epoch": record["epoch"], "step": step, **scores}
    if name == "last":
      results["digest"] = checkpoint.digest(state, run.train_pairs.num_pairs)
      results["wall_time_seconds"] = record["wall_time_seconds"]
      results["last_by_split"] = record["last"]
      results["best_by_split"] = {
        split: {"epoch": found["epoch"], "selected_on": split, **found["scores"]["test"]}
        for split, found in record["best"].items()
      }
  if "best" in results:
    results["best"]["selected_on"] = run.config.eval.select_on
  unmatched = retrieval_metrics.queries_without_match(
    pairs.person_of_pair_N, pairs.person_of_image_M
  )
  results.update(
    dataset=run.config.dataset.name,
    split="test",
    queries=pairs.num_pairs,
    gallery=pairs.num_images,
    queries_without_match=unmatched,
    chance_R1=chance_levels(pairs),
    seed=run.config.seed,
    evaluation_seconds=round(time.time() - start, 3),
    device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  )
  if jax.process_index() == 0:
    files.write_json(run.workdir / workdir_lib.RESULTS, results)
    if run.config.eval.contact_sheet:
      draw_contact_sheet(run, *features)
  console.final("test", results)
  return results


def chance_levels(pairs: PairTable) -> dict[str, float]:
  """R@1 that a random ranking of a split reaches on average, in percent, by direction."""
  text_ids, image_ids = pairs.person_of_pair_N, pairs.person_of_image_M
  return {
    "t2i": retrieval_metrics.chance_level(text_ids, image_ids),
    "i2t": retrieval_metrics.chance_level(image_ids, text_ids),
  }


def draw_contact_sheet(run, images_MxD, texts_NxD):
  """Draws ten test captions, spread over the split, with the images ranked first for each."""
  pairs = run.splits["test"]
  chosen = np.unique(np.linspace(0, pairs.num_pairs - 1, SHEET_QUERIES).astype(int))
  similarity = np.asarray(losses.cosine(texts_NxD[chosen], images_MxD))
  ranked = np.argsort(-similarity, axis=1, kind="stable")[:, :SHEET_IMAGES]
  persons = pairs.person_of_image_M[ranked] == pairs.person_of_pair_N[chosen][:, None]
  contact_sheet.contact_sheet(
    [pairs.captions[query] for query in chosen],
    [[pairs.images[image] for image in row] for row in ranked],
    persons.tolist(),
    run.workdir / workdir_lib.CONTACT_SHEET,
    scores=np.take_along_axis(similarity, ranked, axis=1).tolist(),
  )
