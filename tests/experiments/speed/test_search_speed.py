"""The index that is timed is one that the search can open, and its answers are right."""

from experiments.speed import search_speed


def test_a_small_index(tmp_path):
  search_speed.write_index(tmp_path / "index", 5000, 16)  # two parts
  measured = search_speed.measure(tmp_path / "index", 16, repeats=2)
  assert measured["equal"] and measured["query_ms"]["min"] > 0
