"""Content of every report: one function for each kind of table or figure.

Settings appear in the order of the paper.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.paper import (
  figures,
  gains,
  loss_sizes,
  paper_numbers,
  relation_precision,
  runs,
  tables,
  targets,
)
from experiments.paper.collect import CollectedResults
from experiments.paper.measures import attention as attention_measure
from experiments.paper.measures import masked_queries as masking
from experiments.paper.report import ReportContent, Row, Table, format_mean

SHOWN = ("R1", "mAP")  # scores in the Markdown; the CSV holds all
Draw = Callable[[pathlib.Path], None]


def content_of(data: CollectedResults) -> ReportContent:
  """The report of an experiment."""
  return FORMS[data.experiment.form](data)


def main(data: CollectedResults) -> ReportContent:
  """Tables 1-3: all scores, with the published methods for context."""
  title, (setting,) = data.paper_title, data.experiment.settings
  published = paper_numbers.scores(title)
  rows = tuple(
    dataclasses.replace(row, shown=True)
    for row in _score_rows(data.scores(setting.label), setting.label, published)
  )
  notes = tuple(
    f"{method} (weakly supervised, 2024; {_scores_as_text(scores)} as published by its authors) "
    "scores slightly above the paper's DGIA and is missing from its tables. Its released training "
    "loop mismatches pseudo-labels and samples, so its scores are unconfirmed. Nothing here claims "
    "the state of the art."
    for method, scores in paper_numbers.not_in_the_paper(title).items()
  )
  return ReportContent(
    rows=rows,
    notes=notes,
    draw=_compare([dataclasses.replace(row, setting=row.measure) for row in rows], "percent"),
    second_table=_published_methods(title, rows) if published else None,
  )


def ablation(data: CollectedResults) -> ReportContent:
  """Tables 4-6: R@1 of each setting, and mAP, which the paper omits there."""
  published = _published_ablation(data)
  rows = []
  for setting in data.experiment.settings:
    numbers = {"R1": published[setting.label]} if published else {}
    rows += _score_rows(data.scores(setting.label), setting.label, numbers)
  first = data.experiment.settings[0].label
  by_setting = gains.by_setting(data, SHOWN)
  return ReportContent(
    rows=tuple(rows),
    draw=_draw_gains(by_setting, published, first) or _compare(_rows_of_r1(rows), "R@1 (%)"),
    second_table=gains.table(by_setting, first),
  )


def beyond(data: CollectedResults) -> ReportContent:
  """Ideas beyond the paper: an ablation with the precision of the mined relations."""
  content, rows = ablation(data), []
  for setting in data.experiment.settings:
    rows += [row for row in content.rows if row.setting == setting.label]
    for kind, by_seed in relation_precision.by_kind(data, setting.label).items():
      if any(by_seed) or not by_seed:  # otherwise the runs are finished and mined no relations
        is_shown = kind == "global"
        rows.append(
          relation_precision.final_row(data, setting.label, kind, by_seed, shown=is_shown)
        )
  note = (
    "Correct relations: share of the relations mined in the epoch, compared with the true "
    "identities outside training."
  )
  return dataclasses.replace(content, rows=tuple(rows), notes=(*content.notes, note))


def _published_ablation(data: CollectedResults) -> dict[str, float]:
  """R@1 of each setting as published; empty if the paper has none."""
  if not data.experiment.paper_table:
    return {}
  return paper_numbers.ablation(data.experiment.paper_table, data.paper_title)


def _draw_gains(by_setting: gains.Gains, published: Mapping[str, float], first: str) -> Draw | None:
  """The figure of the gains over the setting `first`; None without any gain."""
  if not by_setting:
    return None
  by_setting = {
    label: {paper_numbers.METRICS[metric]: values for metric, values in by_metric.items()}
    for label, by_metric in by_setting.items()
  }
  published_gains = {label: value - published[first] for label, value in published.items()}
  return lambda path: figures.paired_gains(by_setting, published_gains, first, path)


def mask_ratio(data: CollectedResults) -> ReportContent:
  """Figure 3: R@1 over the share of masked words."""
  published = paper_numbers.mask_ratio(data.paper_title)
  rows, points = [], []
  for setting in data.experiment.settings:
    ratio = float(setting.label)
    numbers = {"R1": published[ratio]} if published else {}
    setting_rows = _score_rows(data.scores(setting.label), setting.label, numbers)
    rows += setting_rows
    points += [(ratio, row) for row in _rows_of_r1(setting_rows)]
  note = "The paper's numbers were read off its figure."
  return ReportContent(
    rows=tuple(rows),
    notes=(note,) if published else (),
    draw=_curve({"R@1": figures.Line(figures.OURS, points)}, "mask ratio in training", "R@1 (%)"),
  )


def relation_accuracy(data: CollectedResults) -> ReportContent:
  """Figure 4: precision of mined relations over epochs, local and global separately."""
  (setting,) = data.experiment.settings
  published = {"local": None, "global": paper_numbers.relation_accuracy(data.paper_title)}
  percents, rows = {}, []
  for kind, by_seed in relation_precision.by_kind(data, setting.label).items():
    epochs = sorted(set().union(*by_seed))
    percents[kind] = {
      epoch: [by_epoch[epoch] for by_epoch in by_seed if epoch in by_epoch] for epoch in epochs
    }
    final = relation_precision.final_row(data, setting.label, kind, by_seed, published[kind])
    rows.append(final)
    rows += [
      Row(setting.label, f"correct {kind} relations, epoch {epoch}", None, tuple(values), False)
      for epoch, values in percents[kind].items()
    ]
  notes = (
    "Correct mined relations / all mined relations of an epoch, compared with the true identities "
    "outside training. Epochs without a mined relation, such as those before the losses start, "
    "have no number.",
  )
  if published["global"] is not None:
    notes += (
      "The paper does not say which relations its curve counts. The curve begins in epoch 2, as "
      "global association does, so we compare it with the global relations.",
    )
  draw = None
  if any(percents.values()) or published["global"] is not None:
    draw = lambda path: figures.precision(percents, published, path)
  return ReportContent(rows=tuple(rows), notes=notes, draw=draw)


def cross_dataset(data: CollectedResults) -> ReportContent:
  """Supplement Table 1: scores on the runs' own dataset and on others."""
  (setting,) = data.experiment.settings
  own = targets.own(data.options)
  scores = {own: data.scores(setting.label)}
  for target in data.targets:
    measured = data.measured(setting.label, target)
    scores[target] = [measurement["scores"] for measurement in measured]
  rows = []
  for target, of_target in scores.items():
    tested = tables.DATASETS[target.name].title
    published = paper_numbers.cross_dataset(data.paper_title, tested)
    rows += _score_rows(of_target, f"{own.title} → {target.title}", published)
  note = (
    "No other dataset to test on: add one with `--source NAME[:VARIANT]=FOLDER`. "
    f"`--source {own.name}` is the runs' own dataset, {own.label}."
  )
  return ReportContent(
    rows=tuple(rows),
    notes=() if data.targets else (note,),
    draw=_compare(_rows_of_r1(rows), "R@1 (%)"),
  )


def masked_queries(data: CollectedResults) -> ReportContent:
  """Supplement Table 2: scores over the share of masked words in the queries."""
  title, (setting,) = data.paper_title, data.experiment.settings
  published, irra = paper_numbers.masked_queries(title), paper_numbers.masked_queries(title, "IRRA")
  measured = data.measured(setting.label)
  rows, points = [], {name: [] for name in SHOWN}
  for ratio in masking.RATIOS:
    scores = [measurement["scores"][str(ratio)] for measurement in measured]
    ratio_rows = _score_rows(scores, str(ratio), published.get(ratio, {}))
    rows += ratio_rows
    for row, name in zip((row for row in ratio_rows if row.shown), SHOWN, strict=True):
      points[name].append((ratio, row))
  second_table = None
  if irra:
    cells = [(ratio, f"{s['R1']:.2f}", f"{s['mAP']:.2f}") for ratio, s in irra.items()]
    second_table = (("IRRA (supervised), mask ratio", "R@1", "mAP"), cells)
  lines = {
    "R@1": figures.Line(figures.OURS, points["R1"]),
    "mAP": figures.Line(figures.SECOND, points["mAP"]),
  }
  note = (
    "The setting is the probability that a word of a query is replaced with the mask token. The "
    f"scores of a run are means over {masking.MASKINGS} seeded maskings."
  )
  return ReportContent(
    rows=tuple(rows),
    notes=(note,),
    draw=_curve(lines, "share of masked query words", "percent"),
    second_table=second_table,
  )


def complexity(data: CollectedResults) -> ReportContent:
  """Supplement Table 3: sizes and times."""
  (setting,) = data.experiment.settings
  published = paper_numbers.complexity(data.paper_title)
  numbers = published.get("DGIA", {})
  measured = data.measured(setting.label)

  def row(measure: str, number: float | None, *names: str) -> Row:
    values = tuple(sum(measurement[name] for name in names) for measurement in measured)
    return Row(setting.label, measure, number, values)

  rows = (
    row("parameters (M)", numbers.get("params_M"), "params_M"),
    row("FLOPs (G multiply-adds)", numbers.get("flops_G"), "flops_G"),
    row("load (s)", None, "load_s"),
    row("embed (s)", None, "embed_s"),
    row("rank (s)", None, "rank_s"),
    row("embed + rank (s)", numbers.get("inference_s"), "embed_s", "rank_s"),
  )
  notes = [
    "FLOPs: matrix products of the towers for one image and one text; a multiply-add counts as "
    f"one operation. Times: wall times for the whole {data.options.split} split, without "
    "compilation. Load reads "
    "and decodes the images, embed encodes images and captions from memory, rank sorts the gallery "
    "for every caption.",
  ]
  if measured:
    first = measured[0]
    notes.append(
      f"Ours: {first['queries']:,} captions against {first['gallery']:,} images on "
      f"{first['device']}."
    )
  second_table = None
  if published:
    notes.append("The paper measured its time on one RTX 4090, so times are not comparable.")
    header = ("published", "parameters (M)", "FLOPs (G)", "inference (s)", "R@1", "mAP")
    columns = ("params_M", "flops_G", "inference_s", "R1", "mAP")
    cells = [
      (name, *("" if values[c] is None else values[c] for c in columns))
      for name, values in published.items()
    ]
    second_table = (header, cells)
  return ReportContent(
    rows=rows,
    notes=tuple(notes),
    draw=_compare([dataclasses.replace(r, setting=r.measure) for r in rows[2:]], "seconds"),
    second_table=second_table,
  )


def tsne(data: CollectedResults) -> ReportContent:
  """Supplement Figure 1: features of some people on a plane, for the first seed."""
  points_by_setting = {}
  for setting in data.experiment.settings:
    if measured := data.measured(setting.label):
      points_by_setting[setting.label] = measured[0]["points"]
  header = ("setting", "person", "kind", "x", "y")
  rows = [
    (label, *(point[name] for name in header[1:]))
    for label, points in points_by_setting.items()
    for point in points
  ]
  return ReportContent(
    notes=() if points_by_setting else ("not run",),
    draw=(lambda path: figures.people(points_by_setting, path)) if points_by_setting else None,
    caption=f"t-SNE of the normalised features of {data.options.split} people, spread evenly over "
    "the split. One colour per person; dots are images, crosses are captions. First finished seed.",
    csv_table=(header, rows),
  )


def attention(data: CollectedResults) -> ReportContent:
  """Figure 2: the image regions that support single words, for the first seed."""
  (setting,) = data.experiment.settings
  measured = data.measured(setting.label)
  examples = measured[0]["examples"] if measured else []
  header = ("caption", "word", "adds to the cosine", "strongest patch, row", "column")
  rows = []
  for example in examples:
    for word in example["words"]:
      relevance = np.asarray(word["relevance"])
      patch = np.unravel_index(np.argmax(relevance), relevance.shape)
      rows.append((example["caption"], word["word"], word["adds"], *map(int, patch)))
  draw = lambda path: figures.regions(examples, attention_measure.decode_image, path)
  return ReportContent(
    notes=() if examples else ("not run",),
    draw=draw if examples else None,
    caption="Gradient-weighted attention rollout (Chefer et al., 2021) over the layers of the "
    "image tower, for the contribution of a word: the cosine with the caption minus the cosine "
    "with the word masked, printed after the word. Plain attention would be the same for every "
    "word, because the image tower does not see the caption. Captions are spread evenly over the "
    f"{data.options.split} split; the words are those that contribute most. Yellow is most "
    "relevant. First finished seed.",
    csv_table=(header, rows),
  )


FORMS: Mapping[str, Callable[[CollectedResults], ReportContent]] = {
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
  "loss_sizes": loss_sizes.report,
}


def _score_rows(
  scores: Sequence[runs.Scores], setting: str, published: Mapping[str, float]
) -> list[Row]:
  """One row per metric: the scores of the finished seeds and the published score."""
  return [
    Row(
      setting,
      printed,
      published.get(name),
      tuple(of_seed[name] for of_seed in scores),
      shown=name in SHOWN,
    )
    for name, printed in paper_numbers.METRICS.items()
  ]


def _rows_of_r1(rows: Sequence[Row]) -> list[Row]:
  return [row for row in rows if row.measure == paper_numbers.METRICS["R1"]]


def _compare(rows: Sequence[Row], ylabel: str) -> Draw | None:
  """The figure of a table, or None if the table holds no number."""
  if not any(row.values or row.paper is not None for row in rows):
    return None
  return lambda path: figures.compare_rows(rows, path, ylabel)


def _curve(lines: Mapping[str, figures.Line], xlabel: str, ylabel: str) -> Draw | None:
  """The figure of scores over a number, or None if no line holds a number."""
  rows = [row for line in lines.values() for _, row in line.points]
  if not any(row.values or row.paper is not None for row in rows):
    return None
  return lambda path: figures.curve(lines, path, xlabel, ylabel)


def _published_methods(title: str, rows: Sequence[Row]) -> Table:
  """The methods of the paper's table by kind of supervision, with ours at the end."""
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
      *(cell(scores, name) for name in paper_numbers.METRICS),
    )
    for method, scores in paper_numbers.not_in_the_paper(title).items()
  ]
  cells.append(("DGIA, ours", "weakly supervised", *(format_mean(row.values) for row in rows)))
  return header, cells


def _scores_as_text(scores: Mapping[str, float]) -> str:
  return ", ".join(f"{paper_numbers.METRICS[name]} {value:.2f}" for name, value in scores.items())
