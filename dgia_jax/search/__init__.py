"""Searching a folder of images by description, with a trained model.

- `retriever`: `Retriever` opens a model and embeds images and descriptions.
- `gallery`: features on the devices, searched exactly.
- `index`: builds, updates and searches the index of a folder; `image_files` lists the folder,
  `index_files` reads and writes the files of an index.
- `identities`: who is on the images, to mark correct results.
- `export`: writes an index for other programs.
- `web_page`: a local page to search with.
- `__main__`: the command line, `python -m dgia_jax.search`.
"""
