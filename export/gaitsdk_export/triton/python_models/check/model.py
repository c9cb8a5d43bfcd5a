"""check: silhouettes [B, T, S, S] uint8 -> frames, the same once they are fit for the engine, which itself would refuse
nothing. Sequences are lengthened to few lengths where repeating frames changes nothing: then they share batches.
"""

from __future__ import annotations

import json

import numpy as np

from gaitsdk import pipeline
from gaitsdk.errors import InputError
from gaitsdk.silhouettes import check_silhouettes
from gaitsdk_export.formats import Range
from gaitsdk_export.triton.backend import Batched
from gaitsdk_export.triton.engines import lengthened


class TritonPythonModel(Batched):
    def open(self):
        self.frames = Range.parse_all(self.parameter("frames"))
        self.runtime = json.dumps({"runtime": "tensorrt", "device": "cuda"}).encode()

    def read(self, request):
        spec, silhouettes = self.bundle.manifest.input, self.require(request, "silhouettes")
        for sequence in silhouettes:
            check_silhouettes(sequence, spec.size, channels=spec.channels)
        length = lengthened(self.frames, silhouettes.shape[1], self.bundle.manifest.length_handling)
        if length is None:
            raise InputError(
                "the server's engine was not built for sequences of this length",
                where="silhouettes",
                got=f"{silhouettes.shape[1]} frames",
                expected=" or ".join(f"{each.least} to {each.most}" for each in self.frames),
                fix="cut longer walks; leave out shorter ones",
            )
        return length, (np.stack([pipeline.pad_cyclic(sequence, length) for sequence in silhouettes]),)

    def run(self, length, frames):
        return {"frames": frames, "runtime": np.full((len(frames), 1), self.runtime, object)}
