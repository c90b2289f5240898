"""From collected results to the rows and the figure of a report: one form each.

Every form is a function (CollectedResults) -> report.Section. Rows keep the order of the settings.
"""

import dataclasses

import numpy as np

from experiments.paper import figures, gains, paper_numbers, runs, tables
from experiments.paper.collect import targets
from experiments.paper.measures import attention as attention_measure
from experiments.paper.measures import masked_queries as masking
from experiments.paper.report import Row, Section, format_mean

SHOWN = ("R1", "mAP")  # the other scores stand in the CSV


def section_of(collected):
  """The section of an experiment, by its form."""
  return FORMS[collected.experiment.form](collected)


def main(collected):
  """Tables 1-3: all scores, with the published methods for context."""
  title, (setting,) = collected.title, collected.experiment.settings
  published = paper_numbers.scores(title)
  rows = tuple(
    dataclasses.replace(row, shown=True)
    for row in _score_rows(collected.scores(setting.label), setting.label, published)
  )
  notes = []
  left_out = paper_numbers.not_in_the_paper(title)
  for method, scores in left_out.items():
    notes.append(
      f"{method} (weakly supervised, 2024; {_scores_as_text(scores)} as its authors published it) "
      "stands slightly above the paper's DGIA and is not in its tables; its released training loop "
      "mismatches pseudo-labels and samples, so it is a claim. Nothing here claims the state of "
      "the art."
    )
  return Section(
    rows=rows,
    notes=tuple(notes),
    draw=_compared([dataclasses.replace(row, setting=row.measure) for row in rows], "percent"),
    context=_context(title, rows) if published else None,
  )


def ablation(collected):
  """Tables 4-6: R@1 of each setting, and mAP, which the paper does not print there."""
  experiment = collected.experiment
  published = {}
  if experiment.paper_table:
    published = paper_numbers.ablation(experiment.paper_table, collected.title)
  rows = []
  for setting in experiment.settings:
    numbers = {"R1": published[setting.label]} if published else {}
    rows += _score_rows(collected.scores(setting.label), setting.label, numbers)
  # Gains paired by seed show more than scores, which vary with the seed as a whole.
  draw = None if published else _gains_figure(collected)
  return Section(
    rows=tuple(rows),
    draw=draw or _compared(_first_scores(rows), "R@1 (%)"),
    context=gains.table(collected, SHOWN),
  )


def _gains_figure(collected):
  """Draws the gains in R@1 over the first setting; None when no two settings share a seed."""
  first = collected.experiment.settings[0].label
  rows = [
    Row(label, "R@1 gained", None, gained["R1"])
    for label, gained in gains.by_setting(collected, SHOWN).items()
  ]
  if not rows:
    return None
  return lambda path: figures.paired_gains(rows, path, f"R@1 gained over {first}")


def beyond(collected):
  """What goes beyond the paper: an ablation, and how many of the mined relations are right."""
  section, rows = ablation(collected), []
  for setting in collected.experiment.settings:
    rows += [row for row in section.rows if row.setting == setting.label]
    for kind, of_seed in _precision(collected, setting.label).items():
      if any(of_seed) or not of_seed:  # else it is finished and mines nothing
        rows.append(_last_precision(setting.label, kind, of_seed, shown=kind == "global"))
  notes = (
    "Relations: percent of those mined in the last epoch that are right, judged with true "
    "identities outside training.",
  )
  return dataclasses.replace(
    section,
    rows=tuple(rows),
    notes=(*section.notes, *notes),
    # Settings may have different finished seeds, so only gains within a seed are comparable.
    draw=_gains_figure(collected),
  )


def _precision(collected, label):
  """{"local", "global": [{epoch: percent}] of every finished seed}."""
  lines = [runs.metrics(run) for run, _ in collected.finished(label)]
  return {kind: [epoch_precision(each, kind) for each in lines] for kind in ("local", "global")}


def _last_precision(label, kind, of_seed, published=None, shown=True):
  """The Row of the last epoch's precision."""
  last = tuple(found[max(found)] for found in of_seed if found)
  return Row(label, f"{kind} relations, last epoch", published, last, shown=shown)


def mask_ratio(collected):
  """Figure 3: R@1 over the share of masked words."""
  published = paper_numbers.mask_ratio(collected.title)
  rows, points = [], []
  for setting in collected.experiment.settings:
    ratio = float(setting.label)
    numbers = {"R1": published[ratio]} if published else {}
    made = _score_rows(collected.scores(setting.label), setting.label, numbers)
    rows += made
    points += [(ratio, row) for row in _first_scores(made)]
  lines = {"R@1": (figures.OURS, points)}
  note = "The paper's numbers are read off its figure." if published else ""
  return Section(
    rows=tuple(rows),
    notes=(note,) if note else (),
    draw=_curve(lines, "mask ratio in training", "R@1 (%)"),
  )


def relation_accuracy(collected):
  """Figure 4: precision of mined relations over epochs, local and global apart."""
  (setting,) = collected.experiment.settings
  finals = {"local": None, "global": paper_numbers.relation_accuracy(collected.title)}
  kinds, rows = {}, []
  for kind, of_seed in _precision(collected, setting.label).items():
    epochs = sorted(set().union(*of_seed))
    kinds[kind] = {e: [found[e] for found in of_seed if e in found] for e in epochs}
    rows.append(_last_precision(setting.label, kind, of_seed, finals[kind]))
    rows += [
      Row(setting.label, f"{kind} relations, epoch {epoch}", None, tuple(values), shown=False)
      for epoch, values in kinds[kind].items()
    ]
  notes = (
    "Correct mined relations / all mined relations of an epoch, judged with true identities "
    "outside training. Epochs before the losses start, or without a mined relation, have none.",
  )
  if finals["global"] is not None:
    notes += (
      "The paper does not say which relations its curve counts; it begins in epoch 2, as the "
      "global ones do, and is set beside those.",
    )
  draw = None
  if any(kinds.values()) or finals["global"] is not None:
    draw = lambda path: figures.precision(kinds, finals, path)
  return Section(rows=tuple(rows), notes=notes, draw=draw)


def epoch_precision(lines, kind):
  """{epoch: percent} from the lines of metrics.jsonl.

  A line holds the precision and the mean number of relations a pair has since the line before it,
  so lines are weighted by that number and by their steps.
  """
  correct, mined, before = {}, {}, 0
  for line in lines:
    if line["split"] != "train":
      continue
    steps, before = line["step"] - before, line["step"]
    precision = line.get(f"{kind}_precision")
    if precision is None:
      continue
    weight = steps * line[f"{kind}_relations"]
    epoch = line["epoch"]
    correct[epoch] = correct.get(epoch, 0.0) + weight * precision
    mined[epoch] = mined.get(epoch, 0.0) + weight
  return {epoch: correct[epoch] / mined[epoch] for epoch in correct if mined[epoch]}


def cross_dataset(collected):
  """Supplement Table 1: tested on its own dataset and on others."""
  (setting,) = collected.experiment.settings
  own = collected.options.dataset
  others = targets(collected.experiment, collected.options, collected.sources)
  rows = []
  for name in (own.name, *others):
    title = tables.DATASETS[name].title
    scores = (
      collected.scores(setting.label)
      if name == own.name
      else [found["scores"] for found in collected.measured(setting.label, name)]
    )
    published = paper_numbers.cross_dataset(collected.title, title)
    rows += _score_rows(scores, f"{own.title} → {title}", published)
  notes = ()
  if not others:
    notes = ("No other dataset to test on: name some with `--source NAME=FOLDER`.",)
  return Section(rows=tuple(rows), notes=notes, draw=_compared(_first_scores(rows), "R@1 (%)"))


def masked_queries(collected):
  """Supplement Table 2: scores over the share of masked words in the queries."""
  title, (setting,) = collected.title, collected.experiment.settings
  published, irra = paper_numbers.masked_queries(title), paper_numbers.masked_queries(title, "IRRA")
  measured = collected.measured(setting.label)
  rows, points = [], {name: [] for name in SHOWN}
  for ratio in masking.RATIOS:
    scores = [found["scores"][str(ratio)] for found in measured]
    made = _score_rows(scores, str(ratio), published.get(ratio, {}))
    rows += made
    for row, name in zip(_shown(made), SHOWN, strict=True):
      points[name].append((ratio, row))
  context = None
  if irra:
    cells = [(ratio, f"{s['R1']:.2f}", f"{s['mAP']:.2f}") for ratio, s in irra.items()]
    context = (("IRRA (supervised), mask ratio", "R@1", "mAP"), cells)
  lines = dict(zip(("R@1", "mAP"), ((figures.OURS, points["R1"]), (figures.OTHER, points["mAP"])),
                   strict=True))  # fmt: skip
  return Section(
    rows=tuple(rows),
    notes=(
      "The setting is the share of masked words of the queries: each word becomes the mask token "
      f"independently; a run's scores are the mean over {masking.MASKINGS} seeded maskings.",
    ),
    draw=_curve(lines, "masked share of the query's words", "percent"),
    context=context,
  )


def complexity(collected):
  """Supplement Table 3: sizes and times."""
  (setting,) = collected.experiment.settings
  published = paper_numbers.complexity(collected.title)
  numbers = published.get("DGIA", {})
  measured = collected.measured(setting.label)
  values = lambda function: tuple(function(found) for found in measured)
  row = lambda measure, number, function: Row(setting.label, measure, number, values(function))
  rows = (
    row("parameters (M)", numbers.get("params_M"), lambda m: m["params_M"]),
    row("FLOPs (G multiply-adds)", numbers.get("flops_G"), lambda m: m["flops_G"]),
    row("load (s)", None, lambda m: m["load_s"]),
    row("embed (s)", None, lambda m: m["embed_s"]),
    row("rank (s)", None, lambda m: m["rank_s"]),
    row("embed + rank (s)", numbers.get("inference_s"), lambda m: m["embed_s"] + m["rank_s"]),
  )
  notes = [
    "FLOPs are those of one image and one text through the towers, a multiply-add counted as one "
    "(as two, it would be twice as many), matrix products only. Times are wall times of the whole "
    "test split without compilation: reading and decoding images, embedding images and captions "
    "that lie in memory, ranking every caption.",
  ]
  if measured:
    found = measured[0]
    notes.append(
      f"Ours: {found['queries']:,} captions against {found['gallery']:,} images on "
      f"{found['device']}."
    )
  context = None
  if published:
    notes.append("The paper's time was taken on one RTX 4090; a difference says as much.")
    header = ("published", "parameters (M)", "FLOPs (G)", "inference (s)", "R@1", "mAP")
    columns = ("params_M", "flops_G", "inference_s", "R1", "mAP")
    cells = [
      (name, *("" if found[c] is None else found[c] for c in columns))
      for name, found in published.items()
    ]
    context = (header, cells)
  return Section(
    rows=rows,
    notes=tuple(notes),
    draw=_compared([dataclasses.replace(r, setting=r.measure) for r in rows[2:]], "seconds"),
    context=context,
  )


def tsne(collected):
  """Supplement Figure 1: the first seed's features of some test people on a plane."""
  points_of = {}
  for setting in collected.experiment.settings:
    measured = collected.measured(setting.label)
    if measured:
      points_of[setting.label] = measured[0]["points"]
  header = ("setting", "person", "kind", "x", "y")
  rows = [
    (label, *(point[name] for name in header[1:]))
    for label, points in points_of.items()
    for point in points
  ]
  return Section(
    notes=() if points_of else ("not run",),
    draw=(lambda path: figures.people(points_of, path)) if points_of else None,
    caption="t-SNE of normalised features of test people spread evenly over the split: a colour a "
    "person, dots images, crosses captions; the first finished seed.",
    data=(header, rows),
  )


def attention(collected):
  """Figure 2: words and the image regions that speak for them, for the first seed."""
  (setting,) = collected.experiment.settings
  measured = collected.measured(setting.label)
  examples = measured[0]["examples"] if measured else []
  header = ("caption", "word", "adds to the cosine", "strongest patch, row", "column")
  rows = []
  for example in examples:
    for word in example["words"]:
      relevance = np.asarray(word["relevance"])
      place = np.unravel_index(np.argmax(relevance), relevance.shape)
      rows.append((example["caption"], word["word"], word["adds"], *map(int, place)))
  return Section(
    notes=() if examples else ("not run",),
    draw=(lambda path: figures.regions(examples, attention_measure.decode_image, path))
    if examples
    else None,
    caption="Gradient-weighted attention rolled out over the image tower's layers (Chefer et al., "
    "2021), for what a word adds: cosine with the caption less cosine with the word masked (the "
    "number after the word). Plain attention would be the same for every word, since the image "
    "tower never sees the caption. Captions are spread evenly over the test split, not chosen by "
    "outcome; the words are those that add most; yellow is most relevant; the first finished seed.",
    data=(header, rows),
  )


FORMS = {
  "main": main,
  "ablation": ablation,
  "beyond": beyond,
  "mask_ratio": mask_ratio,
  "relation_accuracy": relation_accuracy,
  "cross_dataset": cross_dataset,
  "masked_queries": masked_queries,
  "complexity": complexity,
  "tsne": tsne,
  "attention": attention,
}


def _score_rows(scores, setting, published):
  """A Row for every metric: `scores` of the finished seeds beside the paper's `published`."""
  return [
    Row(
      setting,
      printed,
      published.get(name),
      tuple(found[name] for found in scores),
      shown=name in SHOWN,
    )
    for name, printed in paper_numbers.METRICS.items()
  ]


def _shown(rows):
  return [row for row in rows if row.shown]


def _first_scores(rows):
  """The rows of R@1."""
  return [row for row in rows if row.measure == paper_numbers.METRICS["R1"]]


def _compared(rows, ylabel):
  """The figure of a table, or None when it holds no number at all."""
  if not any(row.values or row.paper is not None for row in rows):
    return None
  return lambda path: figures.rows_compared(rows, path, ylabel)


def _curve(lines, xlabel, ylabel):
  numbers = [row for _, rows in lines.values() for _, row in rows]
  if not any(row.values or row.paper is not None for row in numbers):
    return None
  return lambda path: figures.curve(lines, path, xlabel, ylabel)


def _context(title, rows):
  """Published methods by supervision, as the paper lists them, and ours at the end."""
  header = ("method", "supervision", *paper_numbers.METRICS.values())
  cell = lambda scores, name: f"{scores[name]:.2f}" if name in scores else ""
  cells = [
    (method, kind.replace("_", " "), *(cell(scores, name) for name in paper_numbers.METRICS))
    for kind, methods in paper_numbers.published(title).items()
    for method, scores in methods.items()
  ]
  cells += [
    (
      f"{method} (not in the paper)",
      "weakly supervised",
      *(cell(s, m) for m in paper_numbers.METRICS),
    )
    for method, s in paper_numbers.not_in_the_paper(title).items()
  ]
  cells.append(("DGIA, ours", "weakly supervised", *(format_mean(row) for row in rows)))
  return header, cells


def _scores_as_text(scores):
  return ", ".join(f"{paper_numbers.METRICS[name]} {value:.2f}" for name, value in scores.items())
