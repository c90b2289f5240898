"""What a run reports to people: on the console, in files and in pictures.

| module | content |
|---|---|
| `console` | tables, messages and the progress bar of the terminal |
| `metrics_writer` | `metrics.jsonl` and TensorBoard events; throughput and time remaining |
| `score_labels` | the names under which scores and directions are printed |
| `contact_sheet` | one picture with captions and the images ranked first for each |
| `model_card` | the description that accompanies a converted model |

No module here reads or writes training state.
"""
