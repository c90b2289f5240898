"""Declares every table and figure: its settings and the config fields that each setting changes.

A setting is a label with the fields that differ from the dataset's config; `{}` is the whole
method. `experiments.run` trains and reports the declared settings. Settings with the same resolved
config are trained once, even if they appear in several tables.
"""

import dataclasses
from collections.abc import Mapping

from experiments.paper.additions import ADDITIONS
from experiments.paper.settings import (
  BASELINE,
  LOCAL,
  LOCAL_AND_GLOBAL,
  LOCAL_IS_ON,
  WHOLE,
  Experiment,
  Fields,
  Setting,
  only,
)

# Fields of every run; they save disk space and time over dozens of runs.
COMMON: Fields = {
  "eval.contact_sheet": False, "eval.before_training": False, "checkpoint.keep": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Length and initial weights of the runs.

  Attributes:
    fields: config fields of every run.
    start: config fields of a contrastive run from scratch, trained first, once per seed. All other
      runs take its weights and vocabulary, as the paper's runs take those of CLIP. Relations are
      then mined from meaningful features, and the compared settings share their initial weights.
      None: every run starts as its config says.
  """

  fields: Fields
  start: Fields | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Defaults of a dataset's runs.

  Attributes:
    name: as in the config; also of the file in configs/.
    title: as printed in the paper; the key of the paper's numbers.
    schedules: alternatives to the config's own schedule, by name.
    schedule: default of `--schedule`; "" is the config's own.
  """

  name: str
  title: str
  schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
  schedule: str = ""


# For tiny towers on one CPU core; relations are mined from the same epochs on as in the paper.
WARM = Schedule(
  fields={
    "num_epochs": 4,
    "optimizer.learning_rate": 1e-3,
    "local_association.start_epoch": 1,
    "global_association.start_epoch": 2,
  },
  start=BASELINE | {"num_epochs": 10},
)
# For `--variant scratch`: two thirds of its people, dozens of runs then take about an hour.
FEWER = {"dataset.options.train_people": 1800}
WARM_FEWER = Schedule(WARM.fields | FEWER, WARM.start | FEWER)

EMBEDDED = "synth_pedes"  # drawn by the package, needs no files
DATASETS: Mapping[str, Dataset] = {
  dataset.name: dataset
  for dataset in (
    Dataset("cuhk_pedes", "CUHK-PEDES"),
    Dataset("icfg_pedes", "ICFG-PEDES"),
    Dataset("rstp_reid", "RSTPReid"),
    Dataset(EMBEDDED, "synth_pedes", {"warm": WARM_FEWER}),
    Dataset("custom", "custom", {"warm": WARM}),
  )
}
BENCHMARKS = ("cuhk_pedes", "icfg_pedes", "rstp_reid")

# The epoch whose test scores a table shows.
PROTOCOLS = {
  "last": "the last epoch",
  "val": "the epoch with the best R@1 on val",
  "test_best": "the epoch with the best R@1 on test itself, the paper's protocol",
}


EXPERIMENTS: Mapping[str, Experiment] = {
  experiment.name: experiment
  for experiment in (
    Experiment(
      name="main",
      title="DGIA and published methods",
      printed_in="Tables 1-3",
      form="main",
      settings=(WHOLE,),
    ),
    Experiment(
      name="modules",
      title="Contribution of each module",
      printed_in="Table 4",
      form="ablation",
      settings=(
        Setting("B", BASELINE, description="contrastive loss only"),
        Setting("B+LRC", LOCAL, description="with local association", needs=LOCAL_IS_ON),
        Setting("B+GSRC-FR", only("global"), description="with global association"),
        Setting("B+LRC+GSRC-FR", LOCAL_AND_GLOBAL, description="with both", needs=LOCAL_IS_ON),
        Setting(
          "B+LRC+GSRC-FR+IASC-CL",
          {},
          description="with both and consistency: DGIA",
          needs=LOCAL_IS_ON,
        ),
      ),
      paper_table="table4_modules_R1",
    ),
    Experiment(
      name="local",
      title="Similarity used for local relations",
      printed_in="Table 5",
      form="ablation",
      settings=(
        Setting("B", BASELINE, description="contrastive loss only"),
        Setting(
          "B+LRC-I",
          only("local", local_association__modality="image"),
          description="image similarity",
          needs=LOCAL_IS_ON,
        ),
        Setting(
          "B+LRC-T",
          only("local", local_association__modality="text"),
          description="text similarity",
          needs=LOCAL_IS_ON,
        ),
        Setting("B+LRC", LOCAL, description="both must exceed the threshold", needs=LOCAL_IS_ON),
      ),
      paper_table="table5_local_R1",
    ),
    Experiment(
      name="global",
      title="Similarity used for global relations",
      printed_in="Table 6",
      form="ablation",
      settings=(
        Setting("BFE", LOCAL, description="B+LRC of Table 4", needs=LOCAL_IS_ON),
        Setting(
          "BFE+GSRC-T",
          only("local", "global", global_association__anchor="text"),
          description="text anchors",
          needs=LOCAL_IS_ON,
        ),
        Setting(
          "BFE+GSRC-IT",
          only("local", "global", global_association__anchor="both"),
          description="mean of both",
          needs=LOCAL_IS_ON,
        ),
        Setting("BFE+GSRC-FR", LOCAL_AND_GLOBAL, description="image anchors", needs=LOCAL_IS_ON),
      ),
      paper_table="table6_global_R1",
    ),
    Experiment(
      name="mask_ratio",
      title="R@1 over the share of masked words in training",
      printed_in="Figure 3",
      form="mask_ratio",
      settings=tuple(
        Setting(str(ratio), {"augment.mask_ratio": ratio})
        for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
      ),
    ),
    Experiment(
      name="relation_accuracy",
      title="Precision of mined relations over training",
      printed_in="Figure 4",
      form="relation_accuracy",
      settings=(WHOLE,),
    ),
    Experiment(
      name="cross_dataset",
      title="Trained on one dataset, tested on another",
      printed_in="Supplement, Table 1",
      form="cross_dataset",
      settings=(WHOLE,),
      measure="cross_dataset",
    ),
    Experiment(
      name="masked_queries",
      title="Queries with masked words",
      printed_in="Supplement, Table 2",
      form="masked_queries",
      settings=(WHOLE,),
      measure="masked_queries",
    ),
    Experiment(
      name="complexity",
      title="Parameters, FLOPs and time",
      printed_in="Supplement, Table 3",
      form="complexity",
      settings=(WHOLE,),
      measure="complexity",
    ),
    Experiment(
      name="tsne",
      title="Features of some people",
      printed_in="Supplement, Figure 1",
      form="tsne",
      settings=(Setting("B", BASELINE), WHOLE),
      measure="tsne",
    ),
    Experiment(
      name="attention",
      title="Image regions that support single words",
      printed_in="Figure 2",
      form="attention",
      settings=(WHOLE,),
      measure="attention",
    ),
    *ADDITIONS,
  )
}
