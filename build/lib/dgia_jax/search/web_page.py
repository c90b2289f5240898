"""A local web page for an index: type a description, see ranked images, click one for more like it.

  python -m dgia_jax.search serve --index INDEX

The page gets the pixels of found images, made smaller; no path of this machine can be asked for.
What was shown is kept in a folder of this user only, and goes when the server ends. Nothing is sent
elsewhere.
"""

import os
import signal
import tempfile

from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError

TITLE = "Find a person by description"
EXAMPLES = ("a woman in a red coat with a backpack", "a man wearing a black jacket and blue jeans")
NOTICE = (
  "A high rank says that a picture fits the words. It is no evidence of who somebody is. "
  "Search only pictures of people who may be searched for."
)
HEIGHT = 320  # pixels, of an image on the page
KEPT_SECONDS = 3600  # how long what was shown is kept
# Whole paths: files in different folders may have one name.
_STYLE = (
  "<style>#found .caption-label { white-space: normal; overflow-wrap: anywhere; max-width: 100%; }"
  "</style>"
)


class Searcher:
  """What the page's buttons do; knows nothing of how the page looks.

  Args:
    retriever: Retriever.
    index: SearchIndex made with it.
  """

  def __init__(self, retriever, index):
    self._retriever, self._index = retriever, index

  def by_text(self, text, top):
    """Images that fit a description: [(PIL image, "score  path"), ...] and their rows, a list."""
    if not text.strip():
      return [], []
    return self._ranked(self._retriever.embed_texts([text]), top)

  def like(self, rows, chosen, top):
    """Images like the one at place `chosen` of the rows shown; the image itself comes first."""
    return self._ranked(self._index.features([rows[chosen]]), top)

  def _ranked(self, query_1xD, top):
    (scores,), (rows,) = self._index.search(query_1xD, int(top))
    shown, kept = [], []
    for score, row in zip(scores, rows, strict=True):
      path = self._index.paths[row]
      try:
        image = images_lib.read_rgb(str(self._index.images / path))
      except images_lib.UnreadableImageError:
        continue  # removed since it was indexed
      image.thumbnail((4 * HEIGHT, HEIGHT))
      shown.append((image, f"{score:.3f}  {path}"))
      kept.append(int(row))
    return shown, kept


def make_page(searcher, num_images, default_top=20):
  """The page as a `gradio.Blocks`.

  Args:
    searcher: Searcher.
    num_images: in the index, for the heading.
    default_top: images shown at first.

  Raises:
    UserError: Gradio is not installed.
  """
  try:
    import gradio
  except ImportError as error:
    raise UserError("the page needs Gradio: pip install -e '.[serve]'") from error
  with gradio.Blocks(
    title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
  ) as page:
    gradio.Markdown(f"# {TITLE}\n{num_images:,} images. {NOTICE}")
    with gradio.Row():
      text = gradio.Textbox(
        label="description", placeholder=EXAMPLES[0], scale=4, elem_id="description"
      )
      top = gradio.Slider(1, 100, value=default_top, step=1, label="images", scale=1)
    button = gradio.Button("Search", variant="primary", elem_id="search")
    gradio.Examples([[example] for example in EXAMPLES], inputs=[text])
    gradio.Markdown("Click an image for more like it.")
    gallery = gradio.Gallery(
      show_label=False, columns=5, object_fit="contain", height="auto",
      allow_preview=False, elem_id="found", format="jpeg",
    )  # fmt: skip
    rows = gradio.State([])
    gradio.HTML(_STYLE)

    def more_like(rows, top, event: gradio.SelectData):
      return searcher.like(rows, event.index, top)

    for event in (text.submit, button.click):
      event(searcher.by_text, [text, top], [gallery, rows], api_name=False)
    gallery.select(more_like, [rows, top], [gallery, rows], api_name=False)
  return page


def serve(searcher, num_images, host, port, default_top):
  """Serves the page until interrupted.

  Raises:
    UserError: Gradio is not installed, or the address cannot be used.
  """
  with tempfile.TemporaryDirectory(prefix="dgia_jax_page_") as folder:
    os.environ["GRADIO_TEMP_DIR"] = folder  # read when Gradio is imported
    page = make_page(searcher, num_images, default_top)
    searcher.by_text("a person", default_top)  # compiles before the first visitor waits for it
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: tidied up
    try:
      page.launch(server_name=host, server_port=port, show_error=False, quiet=False)
    except OSError as error:
      raise UserError(f"--host={host} --port={port}: cannot be used ({error})") from error
