import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from dgia_jax.errors import UserError
from dgia_jax.reporting import metrics_writer

SCORES = {"R1": 40.0, "R5": 70.0, "R10": 80.0, "mAP": 35.0, "mINP": 20.0}


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
  """Events of all TensorBoard files: length (8 bytes), checksum (4), event, checksum (4)."""
  for path in sorted(workdir.glob("events*")):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      yield Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def points(workdir):
  """{(tag, step): value} of all TensorBoard files."""
  return {
    (value.tag, event.step): value.simple_value
    for event in events(workdir)
    for value in event.summary.value
  }


def train(writer, first, last):
  """What a run of 10 steps an epoch writes from step `first` to `last`."""
  for step in range(first, last + 1):
    epoch = (step - 1) // 10 + 1
    if step % 5 == 0:
      writer.write(step, epoch, "train", {"loss": 1 / step, "local_precision": None})
    if step % 10 == 0:
      writer.write(step, epoch, "val", {"t2i": SCORES, "i2t": SCORES})


def test_lines_and_events(tmp_path):
  workdir = tmp_path / "new" / "folder"
  values = {"loss": jnp.float32(0.5), "pairs": np.int64(3), "bad": jnp.nan, "none": None}
  with (
    metrics_writer.MetricsWriter(workdir, resume_step=0) as writer,
    jax.transfer_guard("disallow"),
  ):
    writer.write(7, 1, "train", values)
    writer.write(np.int64(10), 1, "val", {"t2i": SCORES, "i2t": SCORES})
    # Nothing waits in a buffer: a kill here would lose no line.
    assert lines(workdir) == [
      {"step": 7, "epoch": 1, "split": "train", "loss": 0.5, "pairs": 3, "bad": None, "none": None},
      {"step": 10, "epoch": 1, "split": "val", "t2i": SCORES, "i2t": SCORES},
    ]
  first_line = (workdir / "metrics.jsonl").read_text().splitlines()[0]
  assert first_line.startswith('{"step": 7, "epoch": 1, "split": "train", ')
  found = points(workdir)
  assert found[("train/loss", 7)] == 0.5
  assert found[("train/pairs", 7)] == 3
  assert found[("val/i2t/mINP", 10)] == 20.0
  assert len(found) == 2 + 10


def test_values_may_not_hide_the_step(tmp_path):
  with (
    metrics_writer.MetricsWriter(tmp_path) as writer,
    pytest.raises(ValueError, match="step, epoch, split"),
  ):
    writer.write(1, 1, "train", {"step": 2})


@pytest.mark.parametrize("torn", ["", '{"step": 28, "epo', '{"step"', "\0\0\0"])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path, torn):
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  with metrics_writer.MetricsWriter(whole, resume_step=0) as writer:
    train(writer, 1, 40)
  with metrics_writer.MetricsWriter(resumed, resume_step=0) as writer:
    train(writer, 1, 27)
  with (resumed / "metrics.jsonl").open("a") as file:
    file.write(torn)  # a kill in the middle of a line
  with metrics_writer.MetricsWriter(
    resumed, resume_step=20
  ) as writer:  # the checkpoint was of step 20
    train(writer, 21, 40)
  assert (resumed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
  assert points(resumed) == points(whole)
  starts = [e.step for e in events(resumed) if e.HasField("session_log")]
  assert starts[-1] == 21  # from here on TensorBoard hides what the killed run wrote
  assert sorted(path.name[:7] for path in resumed.iterdir()) == ["events.", "events.", "metrics"]


def test_a_run_from_scratch_starts_the_file_anew(tmp_path):
  with metrics_writer.MetricsWriter(tmp_path, resume_step=0) as writer:
    writer.write(0, 1, "val", {"t2i": SCORES})  # killed before its first checkpoint
    train(writer, 1, 9)
  metrics_writer.MetricsWriter(tmp_path, resume_step=0).close()
  assert lines(tmp_path) == []


def test_evaluation_alone_appends(tmp_path):
  for _ in range(2):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
      writer.write(5, 1, "test", {"t2i": SCORES})
  assert [line["step"] for line in lines(tmp_path)] == [5, 5]


def test_a_damaged_line_is_named(tmp_path):
  good = '{"step": 1, "epoch": 1, "split": "train"}\n'
  for bad in ("what?\n", "[1, 2]\n", '{"epoch": 1}\n'):
    (tmp_path / "metrics.jsonl").write_text(good + bad + good)
    with pytest.raises(UserError, match="metrics.jsonl line 2 is not a line of metrics"):
      metrics_writer.MetricsWriter(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == good + bad + good


def test_other_processes_touch_nothing(tmp_path):
  with metrics_writer.MetricsWriter(tmp_path / "absent", resume_step=0, active=False) as writer:
    writer.write(1, 1, "train", {"loss": 1.0})
  assert list(tmp_path.iterdir()) == []


def test_write_json(tmp_path):
  path = tmp_path / "results.json"
  path.write_text("old")
  value = {
    "path": tmp_path, "best": {"R1": np.float32(0.5), "count": np.int32(3)}, "shape": (64, 32),
    "bank": jnp.arange(2), "nan": float("nan"), "inf": [np.inf, 1], "flag": True, "none": None,
  }  # fmt: skip
  metrics_writer.write_json(path, value)
  assert json.loads(path.read_text()) == {
    "path": str(tmp_path), "best": {"R1": 0.5, "count": 3}, "shape": [64, 32],
    "bank": [0, 1], "nan": None, "inf": [None, 1], "flag": True, "none": None,
  }  # fmt: skip
  text = path.read_text()
  assert text.index('"bank"') < text.index('"best"') < text.index('"shape"')
  assert text.endswith("}\n")

  with pytest.raises(TypeError):
    metrics_writer.write_json(path, {"no": object()})
  assert path.read_text() == text
  assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_speed_counts_neither_compiling_nor_evaluating():
  meter = metrics_writer.SpeedMeter(pairs_per_step=64, total_steps=100)
  meter.start(1, now=50.0)  # the first step compiled for 50 seconds
  assert meter.read(11, now=60.0) == pytest.approx((64.0, 89.0, 0.0))  # one second a step
  meter.start(11, now=70.0)  # evaluated for 10 seconds: in the time left, not in the speed
  assert meter.read(21, now=75.0) == pytest.approx((128.0, 79 * 25 / 20, 0.0))
  assert meter.read(21, now=76.0) == (None, None, None)
  assert meter.read(100, now=200.0)[1] == 0.0


def test_time_lost_to_the_input_is_a_share_of_the_interval():
  meter = metrics_writer.SpeedMeter(pairs_per_step=64, total_steps=100)
  meter.start(1, now=10.0)
  meter.wait(1.0)
  meter.wait(1.5)
  assert meter.read(6, now=20.0)[2] == pytest.approx(0.25)
  assert meter.read(7, now=21.0)[2] == 0.0
  meter.wait(3.0)
  meter.start(7, now=30.0)  # an evaluation: what came before it is told no more
  assert meter.read(8, now=31.0)[2] == 0.0
