"""Kernels of a trace, summed by kind."""

import gzip
import json

import pytest

from experiments.speed.benchmark import device_time, report

TRACKS = [
  {"name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
  {"name": "process_name", "pid": 7, "args": {"name": "/host:CPU"}},
  {"name": "thread_name", "pid": 1, "tid": 4, "args": {"name": "Stream #14(Compute)"}},
  {"name": "thread_name", "pid": 1, "tid": 5, "args": {"name": "XLA Modules"}},
  {"name": "thread_name", "pid": 7, "tid": 4, "args": {"name": "Stream of thoughts"}},
]


def kernel(name, start, duration, pid=1, tid=4):
  return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": start, "dur": duration}


def write(folder, events):
  path = folder / "plugins" / "profile" / "now" / "host.trace.json.gz"
  path.parent.mkdir(parents=True)
  path.write_bytes(gzip.compress(json.dumps({"traceEvents": TRACKS + events}).encode()))


def test_kernels_of_the_device_are_summed_by_kind(tmp_path):
  write(
    tmp_path,
    [
      kernel("nvjet_sm90_tst_128x160", 100, 50), kernel("loop_multiply_fusion_3", 150, 20),
      kernel("cudnn_generated_fort_native_sdpa_sm90", 180, 10), kernel("Memset 0", 190, 4),
      kernel("gemm_fusion_dot_150", 200, 6),
      kernel("jit_train_step", 100, 106, tid=5), kernel("python", 0, 1000, pid=7),
    ],
  )  # fmt: skip
  seconds = device_time.by_kind(device_time.read(tmp_path), steps=2)
  expected = {
    "matrix products": 28e-6, "between products": 10e-6, "attention": 5e-6,
    "copies and fills": 2e-6, "idle": 8e-6,
  }  # fmt: skip
  assert seconds == pytest.approx(expected) and list(seconds) == list(expected)
  kernels = device_time.by_kernel(device_time.read(tmp_path), steps=2)
  assert kernels[1] == {
    "kernel": "loop_multiply_fusion_3", "kind": "between products", "count": 0.5,
    "ms": pytest.approx(10e-3),
  }  # fmt: skip
  results = {"step": {"profile": {"device_time": seconds, "kernels": kernels}}}
  assert report._device_time(results).rows[0] == ["matrix products", "0.03", "52.8 %"]
  assert report._largest_kernels(results).rows == [["loop_multiply_fusion_3", "0.5", "0.010"]]


@pytest.mark.parametrize(
  "kernel, kind",
  [
    ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x32", "matrix products"),
    ("cublasLt::splitKreduce_kernel", "matrix products"),
    ("sm90_xmma_wgrad_implicit_gemm_indexed_bf16", "matrix products"),
    ("cudnn::fusion::compute_dot_do_o_specialized", "attention"),
    ("pytorch_flash::flash_fwd_kernel", "attention"),
    ("fmha_cutlassF_bf16_aligned_64x64_sm80", "attention"),
    ("cudnn::ops::nchwToNhwcKernel", "copies and fills"),
    ("input_reduce_fusion_7", "between products"),
  ],
)
def test_kinds(kernel, kind):
  assert device_time.kind_of(kernel) == kind


def test_a_trace_without_an_accelerator_is_empty(tmp_path):
  assert device_time.read(tmp_path) == []
  write(tmp_path, [kernel("python", 0, 1000, pid=7)])
  assert device_time.read(tmp_path) == []
