"""Evaluation: embeds a split on the mesh, ranks it in both directions, and writes results.json."""

import contextlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from dgia_jax import distributed, files, full_disk, sharding, worker_processes
from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.errors import UserError
from dgia_jax.method import lora, losses, scored_weights, train_state, trainable
from dgia_jax.models import embedder as embedder_lib
from dgia_jax.reporting import contact_sheet
from dgia_jax.training import checkpoint, retrieval_metrics, test_time
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import workdir as workdir_lib
from dgia_jax.training.checkpoint_record import DamagedCheckpointError

SHEET_QUERIES = 10
SHEET_IMAGES = 10

Params = Mapping[str, Any]
ImageFeatures = Float[np.ndarray, "M D"]
TextFeatures = Float[np.ndarray, "N D"]
Scores = dict[str, dict[str, float]]  # direction "t2i" or "i2t" -> metric -> percent


class Evaluator:
  """Embeds and scores the splits of a run; each tower is compiled once, on first use.

  `params` are all parameters of the run, or its two towers alone, on the mesh of the run.
  """

  def __init__(self, setup: setup_lib.TrainingSetup):
    self._setup = setup
    params = setup.abstract_state.params
    layouts = sharding.parameters(setup.mesh, {tower: params[tower] for tower in trainable.TOWERS})
    self._merge_lora = jax.jit(setup.towers, out_shardings=layouts)
    self._merge_average = jax.jit(
      trainable.merge, out_shardings=sharding.parameters(setup.mesh, params)
    )
    self._embedder = embedder_lib.Embedder(setup.graphdef, setup.mesh, layouts)
    self._batch_size = self._embedder.whole_batch(setup.config.eval.batch_size)
    self._rows = sharding.batch_rows(setup.mesh, self._batch_size)

  def embed(self, params: Params, pairs: PairTable) -> tuple[ImageFeatures, TextFeatures]:
    """Unnormalised features of a split's images and captions, on the host.

    Args:
      params: see above.
      pairs: the split.
    """
    tokens_NxL, towers = self._setup.tokenizer.encode(pairs.captions), self._towers(params)
    return self.embed_images(towers, pairs), self.embed_tokens(towers, tokens_NxL)

  def embed_images(self, params: Params, pairs: PairTable) -> ImageFeatures:
    """Unnormalised features of a split's images, on the host."""
    batches = batches_lib.image_batches(
      pairs,
      batch_size=self._batch_size,
      workers=self._setup.config.dataset.workers,
      rows=self._rows,
    )
    pixels = (batch["image"] for batch in batches)
    features = self._embedder.embed_images(self._towers(params), pixels, self._batch_size)
    # Only the last batch is padded, so the padding is at the end.
    return np.concatenate(list(features))[: pairs.num_images]

  def embed_tokens(self, params: Params, tokens_NxL: Int[np.ndarray, "N L"]) -> TextFeatures:
    """Unnormalised features of encoded captions, on the host."""
    return self._embedder.embed_texts(self._towers(params), tokens_NxL, self._batch_size)

  def _towers(self, params: Params) -> Params:
    """The parameters of the model; computed only where LoRA changes them."""
    return (self._merge_lora if lora.NAME in params else self._setup.towers)(params)

  def params(self, state: train_state.TrainState, weights: str) -> Params:
    """The parameters of a state: "raw" as trained, or "ema" with their average in their place."""
    if weights == "raw":
      return state.params
    return self._merge_average(state.params, state.ema)

  def score(self, params: Params, split: str) -> tuple[Scores, tuple[ImageFeatures, TextFeatures]]:
    """Retrieval scores of a split in both directions, and its features.

    In direction "t2i" captions are the queries, in "i2t" images are; the scores of a direction are
    those of `retrieval_metrics.retrieval_metrics`.
    """
    pairs = self._setup.splits[split]
    images_MxD, texts_NxD = self.embed(params, pairs)
    image_ids, text_ids = pairs.person_of_image_M, pairs.person_of_pair_N
    scores = {
      "t2i": self.rank(texts_NxD, images_MxD, text_ids, image_ids),
      "i2t": self.rank(images_MxD, texts_NxD, image_ids, text_ids),
    }
    return scores, (images_MxD, texts_NxD)

  def score_corrected(
    self, params: Params, split: str, features: tuple[ImageFeatures, TextFeatures]
  ) -> dict[str, Scores]:
    """{"test_time": text-to-image scores by correction} where `eval.test_time` asks for some.

    Args:
      params: see above; they embed the training captions, the reference of `test_time.hubness`.
      split: whose captions are the queries and whose images are the gallery.
      features: of the split.
    """
    correction = test_time.Correction(**self._setup.config.eval.test_time)
    if not correction.parts():
      return {}
    pairs, (images_MxD, texts_NxD), references_NxD = self._setup.splits[split], features, None
    if correction.hubness_weight:
      tokens_NxL = self._setup.tokenizer.encode(self._setup.train_pairs.captions)
      references_NxD = self.embed_tokens(params, tokens_NxL)
    scores = {}
    for name, part in correction.parts().items():
      gallery_MxD, adjust = part.prepare(images_MxD, references_NxD)
      ids = pairs.person_of_pair_N, pairs.person_of_image_M
      scores[name] = self.rank(
        texts_NxD, gallery_MxD, *ids, adjust=adjust, block=test_time.RERANK_BLOCK
      )
    return {"test_time": scores}

  def rank(
    self,
    queries_QxD: Float[np.ndarray, "Q D"],
    gallery_GxD: Float[np.ndarray, "G D"],
    query_ids_Q: Int[np.ndarray, " Q"],
    gallery_ids_G: Int[np.ndarray, " G"],
    **options: Any,
  ) -> dict[str, float]:
    """`retrieval_metrics.retrieval_metrics_from_features`, computed on the mesh of the run."""
    mesh = self._setup.mesh
    if distributed.several():  # every process has all features and ranks on its own devices
      mesh = sharding.local_mesh()
    return retrieval_metrics.retrieval_metrics_from_features(
      queries_QxD,
      gallery_GxD,
      query_ids_Q,
      gallery_ids_G,
      layouts=(sharding.batch(mesh), sharding.replicated(mesh)),
      **options,
    )


def evaluate(
  config: ConfigDict,
  workdir: pathlib.Path | str,
  console: Any,
  splits: Mapping[str, PairTable] | None = None,
) -> dict[str, Any]:
  """`--mode evaluate`: scores the checkpoints of a run again, or pretrained weights untrained.

  A working directory without a run, and a config with `pretrained`, score these weights as they
  are: a check of weights, tokenizer, resizing and metrics before any training.

  Args:
    config: the resolved config of the run.
    workdir: the run's folder, or an empty one.
    console: the `console.Console` that prints the scores.
    splits: as in `setup.create`.

  Returns:
    The content of results.json, which it writes.

  Raises:
    UserError: the folder holds no complete checkpoint, or the run of another config.
  """
  worker_processes.leave_if_work_is_repeated()
  workdir = workdir_lib.resolve(workdir)
  if config.pretrained and not workdir_lib.is_claimed(workdir):
    return score_pretrained(config, workdir, console, splits)
  workdir_lib.read_config(workdir)
  workdir_lib.check(workdir_lib.create(workdir), config)
  if not distributed.decided_by_first_process(lambda: len(checkpoint.steps_saved(workdir))):
    raise UserError(f"--workdir={workdir}: no complete checkpoint to evaluate; train first")
  setup = setup_lib.create_for_evaluation(config, workdir, splits, console.print)
  distributed.wait_for_all()
  checkpoints = checkpoint.Checkpoints(
    workdir, read_only=True, verify=config.checkpoint.verify, notify=console.print
  )
  with contextlib.closing(checkpoints):
    return report(setup, checkpoints, console, Evaluator(setup))


def score_pretrained(
  config: ConfigDict,
  workdir: pathlib.Path | str,
  console: Any,
  splits: Mapping[str, PairTable] | None = None,
) -> dict[str, Any]:
  """Scores `config.pretrained` on the test split without training; writes results.json.

  Args:
    config, workdir, console, splits: as in `evaluate`. The directory stays free for a run.

  Returns:
    The content of results.json; the scores are those of "last", epoch 0.

  Raises:
    UserError: the weights cannot be read or do not fit the model.
  """
  start = time.time()
  workdir = workdir_lib.create(workdir)
  config = config.copy_and_resolve_references()
  config.tokenizer.new_words = 0  # they would have to be learned
  setup = setup_lib.create_for_evaluation(config, workdir, splits, console.print)
  state = setup_lib.initial_state(setup, console.print)
  evaluator = Evaluator(setup)
  scores, features = evaluator.score(state.params, "test")
  scores |= evaluator.score_corrected(state.params, "test", features)
  digest = checkpoint.digest(state, setup.train_pairs.num_pairs)
  results = {"last": {"epoch": 0, "step": 0, **scores}, "digest": digest}
  results |= {"pretrained": config.pretrained, **_facts(setup, start)}
  _write(setup, results, features, console)
  return results


def report(
  setup: setup_lib.TrainingSetup,
  checkpoints: checkpoint.Checkpoints,
  console: Any,
  evaluator: Evaluator,
) -> dict[str, Any]:
  """Scores the last and the best checkpoint on the test split, as read back from disk.

  Writes results.json and, if configured, a contact sheet of the best checkpoint. A checkpoint that
  is both is scored once. A best checkpoint that is damaged is left out, and so is "last_by_split"
  where the training ended before it evaluated the last checkpoint.

  Returns:
    The content of results.json.

  Raises:
    UserError: the last checkpoint is damaged, or results.json cannot be written.
  """
  start, config = time.time(), setup.config

  def restore_and_score(step):
    state, record = checkpoints.restore(step, setup.mesh, setup.abstract_state)
    weights = scored_weights.chosen(config.eval.weights, record)
    params = evaluator.params(state, weights)
    scores, features = evaluator.score(params, "test")
    scores |= evaluator.score_corrected(params, "test", features)
    at = {"epoch": record["epoch"], "step": step}
    average = None
    if config.eval.weights == "raw" and state.ema is not None:
      average, _ = evaluator.score(evaluator.params(state, "ema"), "test")
      average = at | {scored_weights.RECORDED: "ema"} | average
    return state, record, at | {scored_weights.RECORDED: weights} | scores, average, features

  last = distributed.decided_by_first_process(lambda: checkpoints.latest() or 0)
  best = distributed.decided_by_first_process(lambda: _best_step(checkpoints, console) or 0)
  state, record, scores, average, features = restore_and_score(last)
  results = {
    "last": scores,
    "digest": checkpoint.digest(state, setup.train_pairs.num_pairs),
    "wall_time_seconds": record["wall_time_seconds"],
    "best_by_split": {
      split: {
        "epoch": chosen["epoch"],
        scored_weights.RECORDED: scored_weights.chosen(config.eval.weights, chosen),
        "selected_on": split,
        **chosen["scores"]["test"],
      }
      for split, chosen in record["best"].items()
    },
  }
  if record["last"]:
    results["last_by_split"] = record["last"]
  else:
    console.print(
      f"epoch {record['epoch']} was not evaluated in training: {workdir_lib.RESULTS} has no"
      ' "last_by_split", and its "best" leaves this epoch out; run the training command again'
    )
  if "before_training" in record:
    results["before_training"] = {"epoch": 0, "step": 0, **record["before_training"]["test"]}
  if average:
    results["ema"] = {"last": average}
  del state  # its memory is needed for the next one
  if best and best != last:
    try:
      _, _, scores, average, features = restore_and_score(best)
    except DamagedCheckpointError as error:
      best = _left_out(console, error)
  if best:
    selected = {"selected_on": config.eval.select_on}
    results["best"] = scores | selected
    if average:
      results["ema"]["best"] = average | selected
  results |= _facts(setup, start)
  _write(setup, results, features, console)
  return results


def _best_step(checkpoints: checkpoint.Checkpoints, console: Any) -> int | None:
  """The step of the best checkpoint; None if there is none, or damage hides which one it is."""
  try:
    return checkpoints.best()
  except DamagedCheckpointError as error:
    return _left_out(console, error)


def _left_out(console: Any, error: DamagedCheckpointError) -> None:
  console.print(
    f'{error}: {workdir_lib.RESULTS} will have no "best"; move this folder away and run with'
    " --mode=evaluate for the next best"
  )


def device_description() -> str:
  """Number and kind of the devices of all processes, such as "8 x cpu"."""
  return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _facts(setup: setup_lib.TrainingSetup, start: float) -> dict[str, Any]:
  """What results.json says about the evaluation besides scores."""
  pairs = setup.splits["test"]
  labels = workdir_lib.identity_labels(setup.workdir)
  return {
    **({workdir_lib.LABELS_KEY: labels} if labels else {}),
    "dataset": setup.config.dataset.name,
    "split": "test",
    "queries": pairs.num_pairs,
    "gallery": pairs.num_images,
    "queries_without_match": retrieval_metrics.queries_without_match(
      pairs.person_of_pair_N, pairs.person_of_image_M
    ),
    "chance_R1": chance_levels(pairs),
    "seed": setup.config.seed,
    "evaluation_seconds": round(time.time() - start, 3),
    "device": device_description(),
  }


def _write(
  setup: setup_lib.TrainingSetup,
  results: dict[str, Any],
  features: tuple[ImageFeatures, TextFeatures],
  console: Any,
) -> None:
  """Writes results.json and, if configured, the contact sheet, and prints the scores.

  Raises:
    UserError: one of these files cannot be written.
  """
  if jax.process_index() == 0:
    try:
      files.write_json(setup.workdir / workdir_lib.RESULTS, results)
      if setup.config.eval.contact_sheet:
        draw_contact_sheet(setup, *features)
    except OSError as error:
      if full_disk.is_cause(error):
        raise  # explained by whoever knows how much is needed
      raise UserError(f"--workdir={setup.workdir}: cannot be written ({error})") from error
  console.final("test", results)


def chance_levels(pairs: PairTable) -> dict[str, float]:
  """R@1 that a random ranking of a split reaches on average, in percent, by direction."""
  text_ids, image_ids = pairs.person_of_pair_N, pairs.person_of_image_M
  return {
    "t2i": retrieval_metrics.chance_level(text_ids, image_ids),
    "i2t": retrieval_metrics.chance_level(image_ids, text_ids),
  }


def draw_contact_sheet(
  setup: setup_lib.TrainingSetup, images_MxD: ImageFeatures, texts_NxD: TextFeatures
) -> None:
  """Draws ten captions, spread evenly over the test split, with their top-ranked images."""
  pairs = setup.splits["test"]
  queries = np.unique(np.linspace(0, pairs.num_pairs - 1, SHEET_QUERIES).astype(int))
  similarity = np.asarray(losses.cosine(texts_NxD[queries], images_MxD))
  ranked = np.argsort(-similarity, axis=1, kind="stable")[:, :SHEET_IMAGES]
  correct = pairs.person_of_image_M[ranked] == pairs.person_of_pair_N[queries][:, None]
  contact_sheet.contact_sheet(
    [pairs.captions[query] for query in queries],
    [[pairs.images[image] for image in row] for row in ranked],
    correct.tolist(),
    setup.workdir / workdir_lib.CONTACT_SHEET,
    scores=np.take_along_axis(similarity, ranked, axis=1).tolist(),
  )
