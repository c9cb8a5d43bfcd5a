"""embed: silhouettes [B, T, S, S] uint8 ([B, T, C, S, S] for a model of C maps) -> features [B, s, d] float32, through
one of the SDK's own runtimes."""

from __future__ import annotations

import json

import numpy as np

from gaitsdk.silhouettes import check_silhouettes
from gaitsdk_export.triton.backend import Batched, to_bytes


class TritonPythonModel(Batched):
    def open(self):
        self.networks = self.settings.open_networks(self.bundle)
        self.runtime = json.dumps({"runtime": self.networks.name, "device": self.networks.device})

    def read(self, request):
        spec, silhouettes = self.bundle.manifest.input, self.require(request, "silhouettes")
        for sequence in silhouettes:
            check_silhouettes(sequence, spec.size, channels=spec.channels)
        return silhouettes.shape[1], (silhouettes,)

    def run(self, frames, silhouettes):
        features = np.ascontiguousarray(self.networks.embed(silhouettes), np.float32)
        return {"features": features, "runtime": to_bytes([[self.runtime]] * len(features))}
