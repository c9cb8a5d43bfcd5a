"""shortlist: features [B, s, d] -> the M nearest entries of the gallery, and the feature maps of the first K. Where the
re-ranker is no engine it ends the identification, too: what the candidates' maps are needed for is done in the process
that has them, for the way through another takes nearly as long as CarGait's network.

Request parameters: `top_k` (default 10), `k` (default: the bundle's K; nothing is re-ranked where the repository was
rendered without re-ranker), `min_sequence` (default 0): the commit that the gallery must have reached, and those of
`gaitsdk_export.triton.decision`. One instance: it holds the gallery's index, which takes in what was committed since
the last search.
"""

from __future__ import annotations

import time

import numpy as np

from gaitsdk import pipeline
from gaitsdk.errors import EmptyGalleryError, InputError
from gaitsdk.rerankers import NETWORKS, create_reranker, list_length
from gaitsdk_export.triton.backend import list_lengths, request_parameters, threshold_parameter, to_bytes
from gaitsdk_export.triton.configurations import LISTED
from gaitsdk_export.triton.decision import STAGES, Decision

#: What the models behind it take.
LIST = {"candidate_features", *(each.name for each in LISTED)}


class TritonPythonModel(Decision):
    def open(self):
        self.gallery = self.settings.open_gallery(self.bundle)
        if not self.decides:
            return
        super().open()
        for stage in STAGES:
            self.metrics.declare("gaitsdk_stage_seconds_total", stage=stage)
        self.rescorer = None
        if self.reranker != "none":
            self.rescorer = create_reranker(self.reranker, self.bundle, self.settings.open_networks(self.bundle))
        if self.reranker in NETWORKS:  # or the first requests would be slow; Triton cannot ask an empty gallery
            k, size = list_length(self.reranker, self.bundle), (self.bundle.strips, self.bundle.dims)
            for n in {1, int(self.parameter("max_batch"))}:
                self.rescorer.rescore(np.zeros((n, *size), np.float32), np.zeros((n, k, *size), np.float32))

    def read(self, request):
        features = self.require(request, "features")
        if not np.isfinite(features).all():
            raise InputError("NaN or infinite values", where="features", fix="send what embed answers")
        asked, wanted = request_parameters(request), set(request.requested_output_names())
        top_k, k = list_lengths(asked, self.bundle, self.reranker, int(self.parameter("max_k")))
        pipeline.check_reached(self.gallery, pipeline.check_sequence(asked.get("min_sequence")))
        ends, listed = "decision" in wanted, bool(wanted & LIST)
        maps = self.reranker != "none" and (ends or "candidate_features" in wanted)
        return (top_k, k, maps, listed, ends, threshold_parameter(asked) if ends else None), (features,)

    def run(self, key, features):
        top_k, k, maps, listed, ends, threshold = key
        size = self.gallery.count
        if not size:
            raise EmptyGalleryError(
                "nobody is enrolled", where="gallery", fix="enroll at least one identity before identifying"
            )
        if ends:
            threshold = self.threshold(threshold, k, size)
        began = time.perf_counter()
        found = pipeline.shortlist(self.gallery, features, top_k, k if maps else 0)
        searched = time.perf_counter()
        state = np.tile(np.array([size, found.sequence], np.int64), (len(features), 1))
        outputs = {}
        if listed:
            outputs = {
                "candidate_ids": np.ascontiguousarray(found.entry_ids, np.int64),
                "candidate_identity": to_bytes(found.identities),
                "candidate_distance": np.ascontiguousarray(found.distances, np.float32),
                "candidate_features": np.ascontiguousarray(found.features, np.float32),
                "gallery_state": state,
            }
        if ends:
            distances = None if self.rescorer is None else self.rescorer.rescore(features, found.features)
            seconds = searched - began, time.perf_counter() - searched
            outputs |= self.decided(found, distances, state, top_k, threshold)
            outputs["seconds"] = np.array([seconds] * len(features)) / len(features)
        return outputs

    def finalize(self):
        super().finalize()
        self.gallery.close()
