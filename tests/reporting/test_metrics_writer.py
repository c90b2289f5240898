import datetime
import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from dgia_jax.errors import UserError
from dgia_jax.reporting import metrics_writer

SCORES = {"R1": 40.0, "R5": 70.0, "R10": 80.0, "mAP": 35.0, "mINP": 20.0}


def lines(workdir):
  """The lines of metrics.jsonl, without the time at which each was written."""
  written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for line in written:
    assert datetime.datetime.fromisoformat(line.pop("time")).tzinfo == datetime.UTC
  return written


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
  """Writes what a run with 10 steps per epoch writes from step `first` to `last`."""
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
    metrics_writer.MetricsWriter(workdir, steps_done=0) as writer,
    jax.transfer_guard("disallow"),
  ):
    writer.write(7, 1, "train", values)
    writer.write(10, 1, "val", {"t2i": SCORES, "i2t": SCORES})
    # Lines are not buffered: a kill at this point loses none.
    assert lines(workdir) == [
      {"step": 7, "epoch": 1, "split": "train", "loss": 0.5, "pairs": 3, "bad": None, "none": None},
      {"step": 10, "epoch": 1, "split": "val", "t2i": SCORES, "i2t": SCORES},
    ]
  first_line = (workdir / "metrics.jsonl").read_text().splitlines()[0]
  assert first_line.startswith('{"step": 7, "epoch": 1, "split": "train", ')
  written = points(workdir)
  assert written[("train/loss", 7)] == 0.5
  assert written[("train/pairs", 7)] == 3
  assert written[("val/i2t/mINP", 10)] == 20.0
  assert len(written) == 2 + 10


def test_an_image_is_written_to_tensorboard(tmp_path):
  Image.new("RGB", (5, 3), (255, 0, 0)).save(tmp_path / "sheet.png")
  with metrics_writer.MetricsWriter(tmp_path) as writer:
    writer.write_image(15, "test/contact_sheet", tmp_path / "sheet.png")
  (value,) = (value for event in events(tmp_path) for value in event.summary.value)
  assert value.tag == "test/contact_sheet" and (value.image.height, value.image.width) == (3, 5)
  decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
  assert decoded.getpixel((2, 1))[:3] == (255, 0, 0)


def test_an_evaluation_that_is_repeated_leaves_no_lines(tmp_path):
  with metrics_writer.MetricsWriter(tmp_path, steps_done=0) as writer:
    for step, split in ((4, "train"), (4, "val"), (8, "train"), (8, "val")):
      writer.write(step, 1, split, {"loss": 1.0})
  for is_evaluated, expected in ((True, 4), (False, 3)):
    metrics_writer.MetricsWriter(tmp_path, steps_done=8, is_evaluated=is_evaluated).close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == expected
  assert '"split": "val"' not in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
  # TensorBoard hides the step, and gets what training wrote about it again.
  *_, start, point = events(tmp_path)
  assert start.HasField("session_log") and (start.step, point.step) == (8, 8)
  assert [value.tag for value in point.summary.value] == ["train/loss"]


def test_values_may_not_hide_the_step(tmp_path):
  with (
    metrics_writer.MetricsWriter(tmp_path) as writer,
    pytest.raises(ValueError, match="must not contain step, time"),
  ):
    writer.write(1, 1, "train", {"step": 2, "time": 3.0})


@pytest.mark.parametrize("torn", ["", '{"step": 28, "epo', '{"step"', "\0\0\0"])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path, torn):
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  with metrics_writer.MetricsWriter(whole, steps_done=0) as writer:
    train(writer, 1, 40)
  with metrics_writer.MetricsWriter(resumed, steps_done=0) as writer:
    train(writer, 1, 27)
  with (resumed / "metrics.jsonl").open("a") as file:
    file.write(torn)  # a kill in the middle of a line
  with metrics_writer.MetricsWriter(
    resumed, steps_done=20
  ) as writer:  # the checkpoint was of step 20
    train(writer, 21, 40)
  assert lines(resumed) == lines(whole)
  assert points(resumed) == points(whole)
  starts = [e.step for e in events(resumed) if e.HasField("session_log")]
  assert starts[-1] == 21  # from here on TensorBoard hides what the killed run wrote
  assert sorted(path.name[:7] for path in resumed.iterdir()) == ["events.", "events.", "metrics"]


def test_a_run_from_scratch_replaces_the_file(tmp_path):
  with metrics_writer.MetricsWriter(tmp_path, steps_done=0) as writer:
    writer.write(0, 1, "val", {"t2i": SCORES})  # killed before its first checkpoint
    train(writer, 1, 9)
  metrics_writer.MetricsWriter(tmp_path, steps_done=0).close()
  assert lines(tmp_path) == []


def test_evaluation_alone_appends(tmp_path):
  for _ in range(2):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
      writer.write(5, 1, "test", {"t2i": SCORES})
  assert [line["step"] for line in lines(tmp_path)] == [5, 5]


@pytest.mark.parametrize(
  "line", ["what?", "[1, 2]", "3", '{"epoch": 1}', '{"step": "two"}', '{"step": null}']
)
def test_a_damaged_line_is_named(tmp_path, line):
  good = '{"step": 1, "epoch": 1, "split": "train"}\n'
  (tmp_path / "metrics.jsonl").write_text(f"{good}{line}\n{good}")
  with pytest.raises(UserError, match="metrics.jsonl line 2 is not a line of metrics"):
    metrics_writer.MetricsWriter(tmp_path, steps_done=3)
  assert (tmp_path / "metrics.jsonl").read_text() == f"{good}{line}\n{good}"


def test_other_processes_touch_nothing(tmp_path):
  with metrics_writer.MetricsWriter(tmp_path / "absent", steps_done=0, active=False) as writer:
    writer.write(1, 1, "train", {"loss": 1.0})
  assert list(tmp_path.iterdir()) == []


def test_throughput_excludes_compiling_and_evaluating():
  meter = metrics_writer.SpeedMeter(pairs_per_step=64, total_steps=100)
  meter.start(1, now=50.0)  # the first step compiled for 50 seconds
  speed = meter.read(11, now=60.0)  # one second per step
  assert speed == pytest.approx(
    metrics_writer.Speed(pairs_per_second=64.0, step_seconds=1.0, input_wait=0.0, seconds_left=89.0)
  )
  meter.start(11, now=70.0)  # evaluated for 10 seconds: counts in the remaining time only
  speed = meter.read(21, now=75.0)
  assert (speed.pairs_per_second, speed.step_seconds) == pytest.approx((128.0, 0.5))
  assert speed.seconds_left == pytest.approx(79 * 25 / 20)
  assert meter.read(21, now=76.0) == (None, None, None, None)
  assert meter.read(100, now=200.0).seconds_left == 0.0


def test_input_wait_is_a_share_of_the_interval():
  meter = metrics_writer.SpeedMeter(pairs_per_step=64, total_steps=100)
  meter.start(1, now=10.0)
  meter.wait(1.0)
  meter.wait(1.5)
  assert meter.read(6, now=20.0).input_wait == pytest.approx(0.25)
  assert meter.read(7, now=21.0).input_wait == 0.0
  meter.wait(3.0)
  meter.start(7, now=30.0)  # an evaluation: earlier waiting is forgotten
  assert meter.read(8, now=31.0).input_wait == 0.0


def test_a_folder_in_place_of_the_metrics_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(UserError, match="metrics.jsonl cannot be read"):
    metrics_writer.MetricsWriter(tmp_path, steps_done=3)
