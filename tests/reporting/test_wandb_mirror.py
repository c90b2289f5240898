"""wandb gets what TensorBoard gets; whatever fails there is said once and stops nothing."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from dgia_jax.errors import UserError
from dgia_jax.reporting import metrics_writer, wandb_mirror
from tests.reporting.test_metrics_writer import SCORES, points


class FakeRun:
  """Records calls; fails in those named by `failing`."""

  url, offline = "https://example.org/people/runs/1", False

  def __init__(self, failing):
    self.failing, self.logged, self.is_finished = failing, [], False

  def define_metric(self, name, step_metric):
    assert (name, step_metric) == ("*", "step")

  def log(self, values):
    if "log" in self.failing:
      raise RuntimeError("no\nconnection")
    self.logged.append(values)

  def finish(self):
    self.is_finished = True


@pytest.fixture
def fake(monkeypatch):
  """The module wandb: `runs`, and `arguments` of every init; `failing` names what fails."""
  module = types.ModuleType("wandb")
  module.runs, module.arguments, module.failing = [], [], set()

  def init(**arguments):
    if "init" in module.failing:
      raise ValueError("no API key")
    module.arguments.append(arguments)
    module.runs.append(FakeRun(module.failing))
    return module.runs[-1]

  module.init, module.Image = init, lambda path: ("image", path)
  module.Settings = lambda **settings: settings
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def mirror(workdir, lines=None):
  notify = lines.append if lines is not None else print
  return wandb_mirror.WandbMirror("people", workdir, {"seed": 3}, notify)


def write(workdir, mirror):
  """Writes numbers and one image through the writer."""
  picture = workdir / "sheet.png"
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
  with metrics_writer.MetricsWriter(workdir, steps_done=0, mirror=mirror) as writer:
    writer.write(5, 1, "train", {"loss": 0.5, "local_precision": None})
    writer.write(10, 2, "val", {"t2i": SCORES})
    writer.write_image(10, "test/contact_sheet", picture)
  return picture


def test_it_gets_the_points_and_images_of_tensorboard(fake, tmp_path):
  picture = write(tmp_path, mirror(tmp_path))
  (run,) = fake.runs
  sent = {
    (name, values["step"]): value
    for values in run.logged
    for name, value in values.items()
    if name != "step"
  }
  assert sent.pop(("test/contact_sheet", 10)) == ("image", str(picture))
  drawn = points(tmp_path)
  drawn.pop(("test/contact_sheet", 10))
  assert sent.keys() == drawn.keys() and ("val/t2i/R1", 10) in sent
  assert sent == {key: pytest.approx(value) for key, value in drawn.items()}
  assert run.is_finished
  assert fake.arguments[0]["config"] == {"seed": 3} and fake.arguments[0]["project"] == "people"


def test_a_run_that_resumes_continues_the_same_wandb_run(fake, tmp_path):
  for _ in range(2):
    mirror(tmp_path).close()
  mirror_elsewhere = tmp_path / "other"
  mirror_elsewhere.mkdir()
  mirror(mirror_elsewhere).close()
  first, second, other = (arguments["id"] for arguments in fake.arguments)
  assert first == second != other
  assert {arguments["resume"] for arguments in fake.arguments} == {"allow"}


@pytest.mark.parametrize(
  "failing, reason", [("init", "no API key"), ("log", "no connection")], ids=["init", "log"]
)
def test_failures_are_said_once_and_stop_nothing(fake, tmp_path, failing, reason):
  fake.failing.add(failing)
  lines = []
  write(tmp_path, mirror(tmp_path, lines))
  address = [f"wandb: {FakeRun.url}"] if failing == "log" else []
  assert lines == [*address, f"wandb failed, and gets nothing from here on: {reason}"]
  assert len(points(tmp_path)) == 1 + len(SCORES) + 1


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"needs wandb: pip install 'dgia_jax\[wandb\]'"):
    mirror(tmp_path)


@pytest.mark.integration
def test_the_real_package_works_offline(monkeypatch, tmp_path):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  lines = []
  for _ in range(2):  # started, and resumed
    write(tmp_path, mirror(tmp_path, lines))
  assert lines == []
  run_id = (tmp_path / wandb_mirror.RUN_ID).read_text()
  records = list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
  assert len(records) == 2 and all(path.stat().st_size for path in records)
  for path in records:  # the numbers are in a format of wandb's own, the images are not
    (sheet,) = path.parent.glob("files/media/images/test/contact_sheet*.png")
    assert Image.open(sheet).size == (6, 4)
