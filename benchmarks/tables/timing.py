"""CarGait's Table 4: milliseconds per probe, from benchmarks/rerankers.py in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from tables.datasets import NotThere

#: Probes that are asked, one in a call.
PROBES, TINY_PROBES = 200, 5
#: How a re-ranker runs where the device is; the first that there is counts.
_WAYS = ("ONNX Runtime", "NumPy", "PyTorch on cuda")


def milliseconds(reranker: str, device: str, tiny: bool) -> float:
    """The median time of a call with one probe and ten candidates, on one thread of the CPU or on the GPU.

    Raises:
        NotThere: no GPU, or a re-ranker that does not run on one.
    """
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise NotThere("needs a CUDA GPU")
    found = _measured(device, TINY_PROBES if tiny else PROBES)
    for way in _WAYS:
        if f"{reranker}, {way}" in found:
            return float(found[f"{reranker}, {way}"]["milliseconds"])
    raise NotThere("re-rankers without weights are NumPy and run on the CPU")


@lru_cache
def _measured(device: str, count: int) -> dict[str, Any]:
    # NumPy's threads are counted when it is imported, which it is here already.
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    code = f"import json, rerankers; print(json.dumps(rerankers.top_ten({device!r}, {count})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[1], env={**os.environ, **threads},
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
