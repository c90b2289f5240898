"""Reports of fabricated runs: their numbers, and how missing numbers are shown."""

import csv
import pathlib
import re
from collections.abc import Iterable, Mapping

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import figure_files, run
from experiments.paper import figures, relation_precision, report, runs, tables
from tests.helpers import fabricated, fake_datasets


def prepare(
  workdir: pathlib.Path,
  dataset: str,
  experiment: str,
  values: Mapping[str, Mapping[int, float]],
  protocol: str = "last",
  log: Iterable[Mapping] = (),
) -> None:
  """Writes finished runs with these values of R@1: {label: {seed: R@1}}."""
  declared = tables.DATASETS[dataset]
  options = runs.Options(declared, workdir, schedule=declared.schedule, protocol=protocol)
  for setting in tables.EXPERIMENTS[experiment].settings:
    for seed, value in values.get(setting.label, {}).items():
      run_of_seed = runs.make_run(options, setting, seed)
      fabricated.finish(run_of_seed, last=value, val=value + 1, test=value + 2, log=log)


def reported(
  workdir: pathlib.Path, dataset: str, experiment: str, *more: str
) -> tuple[str, dict[tuple[str, str], dict[str, str]]]:
  """Markdown and CSV ({(setting, measure): row}) written by the command line."""
  arguments = [experiment, "--dataset", dataset, "--workdir", str(workdir), "--report_only", *more]
  assert run.main(arguments) == 0
  with_protocol = "--protocol" in more and more[more.index("--protocol") + 1]
  default = "test_best" if dataset in tables.BENCHMARKS else "val"
  is_default = with_protocol in (False, default)
  folder = workdir / "report" / (dataset if is_default else f"{dataset}-{with_protocol}")
  with (folder / f"{experiment}.csv").open(newline="") as file:
    rows = {(row["setting"], row["measure"]): row for row in csv.DictReader(file)}
  return (folder / f"{experiment}.md").read_text(), rows


def test_means_deviations_and_differences(tmp_path):
  values = {"B": {0: 60.0, 1: 62.0, 2: 67.0}, "B+LRC": {1: 70.0}}
  prepare(tmp_path, "cuhk_pedes", "modules", values)
  text, rows = reported(tmp_path, "cuhk_pedes", "modules", "--seeds", "0,1,2", "--protocol", "last")
  row = rows["B", "R@1"]
  assert float(row["mean"]) == pytest.approx(63.0)
  assert float(row["std"]) == pytest.approx((26 / 2) ** 0.5)  # 9 + 1 + 16 over n - 1
  assert float(row["difference"]) == pytest.approx(63.0 - 64.69)
  assert row["seeds"] == "3"
  assert float(rows["B", "mAP"]["mean"]) == pytest.approx(93.0)
  assert "| B | R@1 | 64.69 | 63.00 ± 3.61 | -1.69 | 3 |" in text
  assert "| B+LRC | R@1 | 69.04 | 70.00 | +0.96 | 1 |" in text
  assert "| B+GSRC-FR | R@1 | 67.56 | not run |  | 0 |" in text
  assert rows["B+GSRC-FR", "R@1"]["mean"] == ""
  assert "the last epoch" in text and "1 of 3" in text
  first_table = text.split("![")[0].splitlines()
  order = [line.split(" | ")[0] for line in first_table if " | R@1 | " in line]
  assert order == [f"| {s.label}" for s in tables.EXPERIMENTS["modules"].settings]


def test_gains_are_paired_by_seed(tmp_path):
  values = {"B": {0: 60.0, 1: 62.0, 2: 67.0}, "B+LRC": {1: 63.0, 2: 70.0}, "B+GSRC-FR": {4: 99.0}}
  prepare(tmp_path, "rstp_reid", "modules", values)
  text, _ = reported(tmp_path, "rstp_reid", "modules", "--seeds", "0,1,2,4", "--protocol", "last")
  assert "| gain over B, paired by seed | R@1 | mAP | seeds |" in text
  assert "| B+LRC | +2.00 ± 1.41 | +2.00 ± 1.41 | 2 |" in text
  assert "| B+GSRC-FR | +" not in text


@pytest.mark.parametrize("protocol, expected", [("last", 60.0), ("val", 61.0), ("test_best", 62.0)])
def test_the_protocol_selects_the_scores_and_is_named(tmp_path, protocol, expected):
  prepare(tmp_path, "rstp_reid", "main", {"DGIA": {0: 60.0}})
  text, rows = reported(tmp_path, "rstp_reid", "main", "--protocol", protocol)
  assert float(rows["DGIA", "R@1"]["mean"]) == expected
  assert float(rows["DGIA", "R@1"]["difference"]) == pytest.approx(expected - 61.30)
  assert tables.PROTOCOLS[protocol] in text


def test_the_papers_protocol_is_the_default_for_its_datasets(tmp_path):
  prepare(tmp_path, "rstp_reid", "main", {"DGIA": {0: 60.0}})
  _, rows = reported(tmp_path, "rstp_reid", "main")
  assert float(rows["DGIA", "R@1"]["mean"]) == 62.0


def test_main_shows_published_methods_and_makes_no_claim(tmp_path):
  prepare(tmp_path, "cuhk_pedes", "main", {"DGIA": {0: 70.0}})
  text, _ = reported(tmp_path, "cuhk_pedes", "main")
  assert "| CPCL | weakly supervised | 70.03 | 87.28 | 91.78 | 63.19 | 47.54 |" in text
  assert "| ICPG (not in the paper) | weakly supervised | 73.68 |" in text
  assert "| DGIA, ours | weakly supervised | 72.00 |" in text
  assert "Nothing here claims the state of the art" in text


def test_other_datasets_have_no_published_numbers(tmp_path):
  prepare(tmp_path, "synth_pedes", "local", {"B": {0: 20.0}})
  text, rows = reported(tmp_path, "synth_pedes", "local")
  assert "| B | R@1 | – | 21.00 |  | 1 |" in text  # the epoch best on val
  assert all(row["paper"] == row["difference"] == "" for row in rows.values())


def test_val_scores_have_their_own_folder_and_no_published_numbers(tmp_path):
  prepare(tmp_path, "cuhk_pedes", "modules", {"B": {0: 60.0}})
  assert run.main(
    ["modules", "--dataset", "cuhk_pedes", "--workdir", str(tmp_path), "--report_only",
     "--split", "val"]
  ) == 0  # fmt: skip
  text = (tmp_path / "report" / "cuhk_pedes-val" / "modules.md").read_text()
  assert "| B | R@1 | – | 50.00 |  | 1 |" in text
  assert "val scores of the last epoch" in text


def report_folder(workdir: pathlib.Path, *arguments: str) -> str:
  """Name of the folder in which the report of a command line was written."""
  workdir = workdir / "-".join(arguments).replace("/", "_")
  assert run.main(["main", *arguments, "--workdir", str(workdir), "--report_only"]) == 0
  (folder,) = (workdir / "report").iterdir()
  return folder.name


@pytest.mark.parametrize(
  "arguments, name",
  [
    ([], ""),
    (["--variant", "scratch"], "-scratch"),
    (["--variant", "scratch", "--schedule", "warm"], "-scratch-warm"),
    (["--schedule", "config", "--protocol", "val", "--seeds", "0,1"], ""),
    (["--set", "optimizer.weight_decay=0.05"], "-optimizer.weight_decay=0.05"),
    (["--set", "optimizer.weight_decay=2.0", "--set", "mesh.data=1"], ""),  # nothing is changed
    (["--set", "augment.erase_area=(0.1, 0.2)"], "-augment.erase_area=0.1,0.2"),
    (["--protocol", "last"], "-last"),
    (["--variant", "plus", "--split", "val"], "-plus-val"),
    (["--set", "eval.select_on=test"], "-eval.select_on=test"),
    (["--set", "eval.select_on=test", "--protocol", "val"], "-eval.select_on=test-val"),
  ],
)
def test_every_report_has_its_own_folder(tmp_path, arguments, name):
  assert report_folder(tmp_path, *arguments) == f"synth_pedes{name}"


def test_long_and_odd_overrides_become_a_digest(tmp_path):
  path = report_folder(tmp_path, "--set", "pretrained=some/folder")
  assert re.fullmatch("synth_pedes-[0-9a-f]{8}", path)
  long = [f"--set=loss.weights.{name}=0.123456789" for name in ("itc", "local", "global")]
  digest = report_folder(tmp_path, *long)
  assert re.fullmatch("synth_pedes-[0-9a-f]{8}", digest) and digest != path


def test_a_users_annotations_are_part_of_the_name_and_the_title(tmp_path):
  names = []
  for number in (1, 2):
    fake_datasets.write_json(tmp_path / f"{number}.json", [number])
    arguments = ("--dataset", "custom", "--set", f"dataset.annotations={tmp_path}/{number}.json")
    names.append(report_folder(tmp_path / "reports", *arguments))
  assert all(re.fullmatch("custom-[0-9a-f]{8}", name) for name in names) and names[0] != names[1]
  texts = [path.read_text() for path in tmp_path.rglob("main.md")]
  assert {text.splitlines()[0].split(": ")[1] for text in texts} == {
    f"custom, annotations {name.removeprefix('custom-')}" for name in names
  }


def test_the_title_names_variant_schedule_and_overrides(tmp_path):
  arguments = ("--variant", "scratch", "--schedule", "warm", "--set", "batch_size=32")
  assert report_folder(tmp_path, *arguments) == "synth_pedes-scratch-warm-batch_size=32"
  title = "synth_pedes:scratch, schedule warm, batch_size=32"
  (text,) = (path.read_text() for path in tmp_path.rglob("main.md"))
  assert text.startswith(f"# DGIA and published methods: {title}\n")
  (index,) = (path.read_text() for path in tmp_path.rglob("README.md"))
  assert index.startswith(f"# Reports: {title}\n")


def test_reports_without_finished_runs(tmp_path):
  for name in tables.EXPERIMENTS:
    assert run.main([name, "--workdir", str(tmp_path), "--report_only"]) == 0
  folder = tmp_path / "report" / "synth_pedes"
  for name in tables.EXPERIMENTS:
    assert "not run" in (folder / f"{name}.md").read_text()
    assert not list(folder.glob(f"{name}.p[dn][fg]"))
  index = (folder / "README.md").read_text()
  assert [line for line in index.splitlines() if "](main.md)" in line]
  assert index.count(".csv") == len(tables.EXPERIMENTS)


def train_line(step: int, epoch: int, precision: float | None, relations: float) -> dict:
  """A line of metrics.jsonl."""
  kinds = ("local", "global")
  values = {f"{kind}_precision": precision for kind in kinds}
  values |= {f"{kind}_relations": relations for kind in kinds}
  return {"step": step, "epoch": epoch, "split": "train", **values}


def test_the_precision_of_an_epoch_weights_every_relation_equally():
  log = [
    train_line(10, 1, None, 0.0),
    train_line(20, 2, 50.0, 2.0),  # 10 steps with 2 relations per pair: half of them correct
    {"step": 20, "epoch": 2, "split": "val"},
    train_line(25, 2, 80.0, 1.0),  # 5 steps with 1
    train_line(35, 3, 90.0, 1.0),
  ]
  precision = relation_precision.by_epoch(log, "global")
  assert precision == pytest.approx({2: (20 * 50 + 5 * 80) / 25, 3: 90.0})


def test_relation_accuracy_of_each_epoch_and_the_last(tmp_path):
  log = [train_line(10, 2, 40.0, 1.0), train_line(20, 40, 70.0, 1.0)]
  prepare(tmp_path, "cuhk_pedes", "relation_accuracy", {"DGIA": {0: 60.0, 1: 60.0}}, log=log)
  text, rows = reported(tmp_path, "cuhk_pedes", "relation_accuracy", "--seeds", "0,1")
  assert (
    "| DGIA | correct global relations, last epoch | 92.00 | 70.00 ± 0.00 | -22.00 | 2 |" in text
  )
  assert "| DGIA | correct local relations, last epoch | – | 70.00 ± 0.00 |  | 2 |" in text
  assert float(rows["DGIA", "correct local relations, epoch 2"]["mean"]) == 40.0
  assert "epoch 2" not in text.split("## Runs")[0].replace("begins in epoch 2", "")


def test_a_last_epoch_without_relations_is_not_taken_for_one_with_some(tmp_path):
  without_local = train_line(30, 40, 80.0, 1.0) | {"local_precision": None, "local_relations": 0.0}
  for seed, epoch in ((0, 3), (1, 5)):
    log = [train_line(10, 2, 40.0, 1.0), train_line(20, epoch, 70.0, 1.0), without_local]
    prepare(tmp_path, "cuhk_pedes", "relation_accuracy", {"DGIA": {seed: 60.0}}, log=log)
  text, _ = reported(tmp_path, "cuhk_pedes", "relation_accuracy", "--seeds", "0,1")
  assert "| DGIA | correct global relations, last epoch | 92.00 | 80.00 ± 0.00 | -12.00 |" in text
  assert "| correct local relations, last epoch with any (3 or 5 of 40) | – | 70.00 ± 0.00" in text


def test_beyond_the_paper_reports_the_precision_of_relations(tmp_path):
  values = {"DGIA": {0: 60.0, 1: 61.0}, "reciprocal": {0: 63.0}}
  log = [train_line(10, 2, 40.0, 1.0), train_line(20, 8, 70.0, 1.0)]
  prepare(tmp_path, "synth_pedes", "strict_mining", values, log=log)
  prepare(tmp_path, "synth_pedes", "strict_mining", {"text-match": {0: 59.0}})
  text, rows = reported(
    tmp_path,
    "synth_pedes",
    "strict_mining",
    "--seeds",
    "0,1",
    "--protocol",
    "last",
    "--split",
    "test",
  )
  assert "| DGIA | correct global relations, last epoch | – | 70.00 ± 0.00 |  | 2 |" in text
  assert "| other-images | correct global relations, last epoch | – | not run |  | 0 |" in text
  assert float(rows["reciprocal", "correct local relations, last epoch"]["mean"]) == 70.0
  assert "| reciprocal | +3.00 | +3.00 | 1 |" in text
  # This run is finished and logged no relations.
  assert ("text-match", "R@1") in rows
  assert ("text-match", "correct global relations, last epoch") not in rows


@pytest.mark.parametrize(
  "name", ["main", "modules", "mask_ratio", "relation_accuracy", "strict_mining"]
)
def test_figures_are_drawn(tmp_path, name):
  log = [train_line(10, 2, 40.0, 1.0), train_line(20, 3, 70.0, 1.0)]
  values = {s.label: {0: 60.0, 1: 61.0} for s in tables.EXPERIMENTS[name].settings[:2]}
  prepare(tmp_path, "icfg_pedes", name, values, log=log)
  text, _ = reported(tmp_path, "icfg_pedes", name, "--seeds", "0,1")
  assert f"({name}.png)" in text
  picture = tmp_path / "report" / "icfg_pedes" / f"{name}.png"
  with Image.open(picture) as image:
    assert image.width > 300 and len(image.convert("L").getcolors(1 << 20)) > 10
  assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
  """The figures drawn from now on."""
  saved = []
  monkeypatch.setattr(figure_files, "save", lambda figure, path: saved.append(figure))
  return saved


def test_settings_without_numbers_and_single_series_leave_no_trace(monkeypatch):
  saved = drawn(monkeypatch)
  rows = [report.Row("a", "R@1", None, (1.0, 2.0)), report.Row("b", "R@1", None, ())]
  figures.compare_rows(rows, pathlib.Path("x.png"), "percent")
  (axes,) = saved[0].axes
  assert [label.get_text() for label in axes.get_xticklabels()] == ["a"]
  assert axes.get_legend() is None


def test_gains_are_drawn_per_seed_beside_zero_and_the_published_gain(monkeypatch, tmp_path):
  saved = drawn(monkeypatch)
  values = {"B": {0: 60.0, 1: 61.0}, "B+LRC": {0: 62.0, 1: 65.0}}
  prepare(tmp_path, "cuhk_pedes", "modules", values)
  reported(tmp_path, "cuhk_pedes", "modules", "--seeds", "0,1", "--protocol", "last")
  r1, mean_ap = saved[0].axes
  assert [label.get_text() for label in r1.get_xticklabels()] == ["B+LRC"]
  by_seed = r1.collections[0].get_offsets()
  assert sorted(by_seed[:, 1]) == [2.0, 4.0]
  assert list(r1.lines[0].get_ydata()) == [0, 0]
  (published,) = r1.lines[-1].get_ydata()
  assert published == pytest.approx(69.04 - 64.69)
  assert r1.get_legend() is not None and mean_ap.get_legend() is None


@pytest.mark.parametrize(
  "arguments, kept",
  [
    (["main", "--report_only", "--seeds", "0,1"], "main --seeds 0,1"),
    (["main", "--shard", "1/2", "--set", "a=1"], "main --set a=1"),
    (["main", "--shard=1/2", "--split", "val", "--rep"], "main --split val"),
    (["main", "--sh", "1/2", "--schedule", "warm", "--source", "custom=-r"],
     "main --schedule warm --source custom=-r"),
  ],
)  # fmt: skip
def test_the_command_of_a_report_trains_all_runs(arguments, kept):
  assert report.command_of(arguments) == f"python -m experiments.run {kept}"


def test_vertical_bars_in_cells_are_escaped():
  assert report.markdown_table(("a|b",), [("c|d",)]) == ["| a\\|b |", "|---|", "| c\\|d |"]


@pytest.mark.parametrize(
  "label, lines",
  [
    ("oracle_relations", ["oracle_", "relations"]),
    ("B+LRC+GSRC-FR", ["B+LRC+", "GSRC-FR"]),
    ("synth_pedes → synth_pedes", ["synth_pedes", "→", "synth_pedes"]),
    ("synth_pedes → custom", ["synth_pedes", "→ custom"]),
    ("embed + rank (s)", ["embed + rank", "(s)"]),
    ("uninterruptedness", ["uninterruptedness"]),
  ],
)
def test_labels_of_ticks_break_between_words_only(label, lines, monkeypatch):
  ticks = []
  monkeypatch.setattr(
    figure_files, "save", lambda figure, _: ticks.extend(figure.axes[0].get_xticklabels())
  )
  figures.compare_rows([report.Row(label, "R@1", None, (1.0,))], pathlib.Path("x.png"), "percent")
  assert [tick.get_text().split("\n") for tick in ticks] == [lines]
