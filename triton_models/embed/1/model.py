"""embed: silhouettes [B, T, S, S] uint8 ([B, T, C, S, S] for a model of C maps) -> features [B, s, d] float32, through
one of the SDK's own runtimes.

Triton hands over requests of any lengths together. On a GPU they share calls of the network by the SDK's own rule
(`pipeline.batches`). On a CPU each sequence has a call of its own, on a core of its own where several wait: batches
save nothing there, and padding costs time.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gaitsdk import pipeline
from gaitsdk.runtimes.onnx_runtime import cores
from gaitsdk.silhouettes import check_silhouettes
from gaitsdk_export.triton.backend import Batched


class TritonPythonModel(Batched):
    def open(self):
        self.networks = self.settings.open_networks(self.bundle)
        self.workers = ThreadPoolExecutor(self.settings.threads or cores())
        self.runtime = json.dumps({"runtime": self.networks.name, "device": self.networks.device}).encode()

    def read(self, request):
        spec, silhouettes = self.bundle.manifest.input, self.require(request, "silhouettes")
        sequences = np.empty(len(silhouettes), object)  # of different lengths, together with those of other requests
        for i, sequence in enumerate(silhouettes):
            check_silhouettes(sequence, spec.size, channels=spec.channels)
            sequences[i] = sequence
        return None, (sequences,)

    def run(self, _, sequences):
        if self.networks.device == "cpu":
            run = map if len(sequences) == 1 else self.workers.map
            features = np.concatenate(list(run(self.alone, sequences)))
        else:
            most, handling = int(self.parameter("max_batch")), self.bundle.manifest.length_handling
            features = pipeline.embed_many(self.networks.embed, sequences, most, handling)
        return {"features": features, "runtime": np.full((len(features), 1), self.runtime, object)}

    def alone(self, sequence):
        return np.asarray(self.networks.embed(sequence[None]), np.float32)
