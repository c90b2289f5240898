"""Training and evaluating one run.

Start with `train.train`, which tells the whole story; the other modules are its parts.

| module | content |
|---|---|
| `train` | create or restore, compile, then the loop: step, log, evaluate, save |
| `setup` | config -> mesh, data, tokenizer, model, optimiser, training step |
| `inputs` | the pairs of the dataset and the tokenizer |
| `setup_checks` | refuses configs that do not fit the devices or the model |
| `packing_plan` | chooses how the captions of a batch are packed into rows |
| `initial_weights` | the weights of another run or of a published checkpoint, to start from |
| `size_check` | refuses sizes that cannot fit into memory, before anything is allocated |
| `step_log` | reads each step's output one step late; logs averages, throughput, learning rate |
| `step_metrics` | averages the step's metrics on the device until they are logged |
| `step_profiler` | records a profile of a few steps |
| `evaluate_and_save` | evaluates at the end of epochs and saves checkpoints |
| `relation_precision` | share of mined relations that are correct, measured on the host |
| `evaluate` | embeds a split on the mesh, ranks it in both directions, writes results.json |
| `retrieval_metrics` | R@K, mAP and mINP; a public function of arrays |
| `test_time` | corrections of the ranking at test time, off by default |
| `checkpoint` | saves the training state and restores it on any mesh |
| `checkpoint_arrays` | reads and verifies the arrays of a checkpoint, and places them on a mesh |
| `checkpoint_manager` | Orbax's manager: which checkpoints it keeps, what it prints |
| `checkpoint_record` | what a checkpoint must contain, so that damage is noticed |
| `array_digests` | SHA-256 and CRC-32 of arrays, whatever mesh they are split over |
| `crc32` | the CRC-32 of bytes in several places, from a number for each part |
| `run_weights` | the weights of a run as the two towers, to convert, index or measure |
| `workdir` | a run's working directory and the names of the files in it |
| `compilation_cache` | keeps compiled programs on disk for later starts |
"""
