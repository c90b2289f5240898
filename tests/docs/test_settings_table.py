"""The page of settings is complete and up to date."""

from dgia_jax import config as config_lib
from docs.draw import settings_table
from tests.helpers.paths import ROOT
from tests.helpers.settings import leaves


def test_every_setting_is_listed_with_a_comment_and_its_default():
  fields = settings_table.settings()
  base = config_lib.base()
  assert sorted(field.name for field in fields) == sorted(leaves(base))
  for field in fields:
    assert field.meaning, f"{field.name} has no comment in dgia_jax/config.py"
    expected = base.to_dict()
    for part in field.name.split("."):
      expected = expected[part]
    assert eval(field.default) == expected, field.name


def test_every_setting_is_an_item_of_its_group():
  lines = list(settings_table.lines())
  assert "- `seed` (`0`): " in lines[lines.index("## The run") + 2]
  assert "- `mesh.data` (`-1`): " in lines[lines.index("## mesh") + 2]
  items = [line for line in lines if line.startswith("- ")]
  assert len(items) == len(settings_table.settings())
  assert max(map(len, lines)) <= settings_table.WIDTH


def test_the_page_is_up_to_date():
  page = (ROOT / "docs" / "configuration.md").read_text()
  generated = "\n".join(settings_table.lines()) + "\n"
  assert page == generated, "run: python -m docs.draw.settings_table > docs/configuration.md"
