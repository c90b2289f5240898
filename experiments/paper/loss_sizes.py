"""The report of the losses' sizes and gradients, see `measures.loss_gradients`."""

import numpy as np

from experiments.paper.collect import CollectedResults
from experiments.paper.report import ReportContent, Row, csv_table, format_mean

LOSSES = {
  "itc": "contrastive",
  "local": "local association",
  "global": "global association",
  "consistency": "consistency",
}
MOMENTS = {"start": "initial weights", "end": "end of the training"}
QUANTITIES = {
  "value": "value",
  "gradient_norm": "gradient norm",
  "cosine": "cosine with the contrastive gradient",
}


def report(data: CollectedResults) -> ReportContent:
  """Value, gradient norm and direction of every loss, before and after the training."""
  (setting,) = data.experiment.settings
  measured = data.measured(setting.label)
  rows, cells = [], []
  for moment, at in MOMENTS.items():
    for loss, printed in LOSSES.items():
      by_quantity = {
        quantity: tuple(seed[moment][loss][quantity] for seed in measured if loss in seed[moment])
        for quantity in QUANTITIES
      }
      rows += [
        Row(printed, f"{QUANTITIES[quantity]}, {at}", None, values)
        for quantity, values in by_quantity.items()
      ]
      share = _share(measured, moment, loss)
      cells.append((at, printed, share, *map(format_mean, by_quantity.values())))
  header = ("weights", "loss", "share of the sum", *QUANTITIES.values())
  note = (
    "Means over eight batches. At the initial weights the memory bank holds their "
    "features of all training pairs. Shares and norms are those of the losses with weight 1."
  )
  return ReportContent(notes=(note,), second_table=(header, cells), csv_table=csv_table(rows))


def _share(measured: list[dict], moment: str, loss: str) -> str:
  """Mean share of a loss in the sum of all losses, as text."""
  shares = [
    seed[moment][loss]["value"] / sum(of_loss["value"] for of_loss in seed[moment].values())
    for seed in measured
    if loss in seed[moment]
  ]
  return f"{100 * np.mean(shares):.0f} %" if shares else ""
