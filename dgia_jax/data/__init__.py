"""Datasets: from the user's files, or synthetic people, to batches.

| module | job |
|---|---|
| `__main__` | `python -m dgia_jax.data`: `check`, `prepare` and `make` |
| `catalog` | the public datasets: file names, first id, published sizes |
| `datasets` | a dataset by name: `load_builder` finds its build, or builds it |
| `annotation_formats` | the accepted forms of annotation files |
| `annotations` | annotation files to checked records |
| `dataset_files` | where annotations and images are; which are missing or refused |
| `check`, `check_captions`, `data_report` | the report on a dataset |
| `manifest`, `manifest_readers` | `make`: annotations from CSV, Parquet and other forms |
| `image_store`, `folder_walk` | images from archives; walking through folders and links |
| `images`, `image_hashes` | decoding and resizing; which image files have changed |
| `tfds_builder` | the builder of every dataset that consists of files |
| `locked_build` | lets one process build while the others wait |
| `synth_pedes` | the built-in dataset: people, their images and captions are drawn |
| `pairs` | the table of (image, caption) pairs of a split |
| `tokenizer`, `siglip_tokenizer`, `token_ids` | captions to token ids |
| `clip_vocabulary`, `text_cleaning` | the files of CLIP's vocabulary; the cleaning of captions |
| `new_words` | tokens for words that a copied vocabulary lacks |
| `batches`, `prefetch` | the input pipeline |
"""
