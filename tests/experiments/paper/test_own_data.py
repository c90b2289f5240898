"""The second test bed comes as a dataset of one's own does."""

from dgia_jax.data import annotations
from experiments.paper import own_data


def test_what_is_drawn_reads_as_a_custom_dataset(tmp_path):
  settings = own_data.SETTINGS.replace(train_people=3, val_people=1, test_people=2)
  assert own_data.write(settings, tmp_path) == 3 * (3 + 1 + 2)
  found = annotations.read_annotations([tmp_path / "annotations.json"])
  assert found.errors == found.notes == () and found.identities == "known"
  assert {len(record.captions) for record in found.records} == {2}
  assert all((tmp_path / "images" / record.path).is_file() for record in found.records)
  assert [sum(r.split == split for r in found.records) for split in ("train", "val", "test")] == [
    9, 3, 6
  ]  # fmt: skip
