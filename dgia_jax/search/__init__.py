"""Searching a folder of images by description, with a trained model.

- `retriever`: `Retriever` opens a model and embeds images and descriptions; `image_tensors` takes
  PyTorch's tensors.
- `standalone`: writes both towers as programs that run without this package.
- `gallery`: features on the devices, searched exactly.
- `exact`: the order of results, by cosines in float64.
- `codes`: codes of 8 bits for the features of an index.
- `coded_gallery`: exact search that reads these codes, and few of the features.
- `index`: builds and updates the index of a folder; `image_files` lists the folder, `changes` says
  which files are new, `compaction` rewrites an index without what is gone.
- `opened_index`: `SearchIndex` searches an index.
- `index_files`: reads and writes the files of an index; `index_paths` those with the paths of its
  images, `derived_files` what these and the codes have in common.
- `matches`: results of a search, their re-ranking, and copies of one picture.
- `query`: what a search asks for, and how several wishes become one query.
- `identities`: who is on the images, to mark correct results.
- `export`: writes an index for other programs.
- `web_page`: a local page to search with; `results_html` draws its results, `request_guard` refuses
  what others send to it.
- `__main__`: the command line, `python -m dgia_jax.search`; `commands` does what it asks for.
"""
