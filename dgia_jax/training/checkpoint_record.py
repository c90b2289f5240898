"""The record of a checkpoint: a small JSON object that says what the checkpoint must contain.

It holds the step, the score, the run's own record (data position, best scores) and the checksum of
every array, and ends with a digest of itself. Whoever opens a checkpoint can therefore tell that a
file is damaged, cut, missing or copied from another step.
"""

import dataclasses
import json
from typing import Any

import orbax.checkpoint as ocp

from dgia_jax import bucket, files
from dgia_jax.errors import UserError

RECORD = "record"  # name of the item inside a checkpoint
_FILE = "metadata"  # which Orbax writes for such an item


class DamagedCheckpointError(UserError):
  """A checkpoint that does not contain what was saved."""


@dataclasses.dataclass(frozen=True)
class CheckpointRecord:
  """What a checkpoint says about itself."""

  step: int
  run: dict[str, Any]  # what the run itself stored, see Checkpoints.save
  score: float | None  # None if the checkpoint was not evaluated
  checksums: dict[str, str] | None  # by array name; None in checkpoints of earlier releases


def to_json(record: CheckpointRecord) -> dict[str, Any]:
  """The JSON object to store."""
  content = json.loads(json.dumps(dataclasses.asdict(record)))
  return files.sealed(content)


def read(checkpoint: bucket.AnyPath) -> CheckpointRecord:
  """Reads the record of the checkpoint in this folder, which is named after its step.

  Raises:
    DamagedCheckpointError: the record is missing or damaged, or belongs to another step.
  """
  try:
    content = ocp.JsonCheckpointHandler().restore(checkpoint / RECORD)
    if "data_position" in content:
      return _of_earlier_release(checkpoint, content)
    record = CheckpointRecord(**files.unsealed(content))
  except PermissionError as error:
    raise UserError(f"{checkpoint}: cannot be read ({error})") from error
  except Exception as error:  # a damaged file can fail in any way
    bucket.raise_if_unreachable(checkpoint, error)
    raise damaged(checkpoint, f"{RECORD}: {error}") from error
  if str(record.step) != checkpoint.name:
    raise damaged(checkpoint, f"it contains step {record.step}")
  return record


def amend(checkpoint: bucket.AnyPath, content: dict[str, Any], score: float) -> None:
  """Replaces the run's own record and the score of a checkpoint, both or neither."""
  record = dataclasses.replace(read(checkpoint), run=content, score=score)
  path, text = checkpoint / RECORD / _FILE, json.dumps(to_json(record))
  if bucket.is_remote(path):
    path.write_text(text)  # an object of a bucket is replaced as a whole
  else:
    files.write_text(path, text)


def damaged(checkpoint: bucket.AnyPath, reason: str) -> DamagedCheckpointError:
  """The error that names a checkpoint and what is wrong with it."""
  short = " ".join(reason.split())
  return DamagedCheckpointError(
    f"{checkpoint} is damaged ({short[:200]}{'...' if len(short) > 200 else ''})"
  )


def _of_earlier_release(checkpoint: bucket.AnyPath, content: dict[str, Any]) -> CheckpointRecord:
  """Earlier releases stored the run's record alone, and the score in an item of its own."""
  score = None
  if (checkpoint / "metrics").exists():
    score = float(ocp.JsonCheckpointHandler("metrics").restore(checkpoint / "metrics")["score"])
  return CheckpointRecord(int(checkpoint.name), content, score, None)
