"""Parts of the web page that need nothing but the results."""

import base64
import csv
import io
import json
import re

from dgia_jax.search import results_html


def test_a_spreadsheet_finds_no_formulas_in_a_list():
  """Whoever may add images chooses their names."""
  names = ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "a=1", "'=1"]
  rows = [{"rank": 1, "score": -0.5, "path": name} for name in names]
  page = results_html.downloads(rows)
  csv_text, json_text = (
    base64.b64decode(content).decode() for content in re.findall(r'href="data:[^"]*,([^"]*)"', page)
  )
  listed = list(csv.DictReader(io.StringIO(csv_text, newline="")))
  assert [row["path"] for row in listed] == [f"'{name}" for name in names[:6]] + names[6:]
  assert {row["score"] for row in listed} == {"-0.5"}
  assert json.loads(json_text) == rows
