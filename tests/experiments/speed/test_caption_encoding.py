"""Both ways of encoding captions agree, and the sorted one computes fewer tokens."""

import pytest

from experiments.speed import caption_encoding
from experiments.speed.caption_encoding import CUT, FULL


@pytest.mark.integration
def test_both_ways_are_timed_and_agree():
  report = caption_encoding.measure("tiny", 70, batch_size=16, repeats=2, vocab_size=300)
  assert report["largest_difference"] < 1e-6
  # Two batches of 64 tokens and three of 32, with 16 rows each, for 70 captions.
  assert report["tokens"] == {CUT: 51.2, FULL: 77}
  for seconds in (report["seconds"], report["processor_seconds"], report["first_seconds"]):
    assert seconds.keys() == {CUT, FULL} and min(seconds.values()) >= 0
  assert report["ratio"] > 0 and report["captions"] == 70
