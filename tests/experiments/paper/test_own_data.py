"""The second synthetic dataset has the format of a user's own data."""

from dgia_jax.data import annotations
from experiments.paper import own_data


def test_the_drawn_files_can_be_read_as_a_custom_dataset(tmp_path):
  settings = own_data.SETTINGS.replace(train_people=3, val_people=1, test_people=2)
  assert own_data.write(settings, tmp_path) == 3 * (3 + 1 + 2)
  dataset = annotations.read_annotations([tmp_path / "annotations.json"])
  assert dataset.errors == dataset.notes == () and dataset.identities == "known"
  assert {len(record.captions) for record in dataset.records} == {2}
  assert all((tmp_path / "images" / record.path).is_file() for record in dataset.records)
  assert [sum(r.split == split for r in dataset.records) for split in ("train", "val", "test")] == [
    9, 3, 6
  ]  # fmt: skip
