"""shortlist: features [B, s, d] -> the M nearest entries of the gallery, and the feature maps of the first K.

Request parameters: `top_k` (default 10), `k` (default: the bundle's K; nothing is re-ranked where the repository was
rendered without re-ranker), `min_sequence` (default 0): the commit that the gallery must have reached. One instance: it
holds the gallery's index, which takes in what was committed since the last search.
"""

from __future__ import annotations

import numpy as np

from gaitsdk import pipeline
from gaitsdk.errors import EmptyGalleryError, InputError
from gaitsdk_export.triton.backend import Batched, list_lengths, request_parameters, to_bytes


class TritonPythonModel(Batched):
    def open(self):
        self.gallery = self.settings.open_gallery(self.bundle)

    def read(self, request):
        features = self.require(request, "features")
        if not np.isfinite(features).all():
            raise InputError("NaN or infinite values", where="features", fix="send what embed answers")
        asked = request_parameters(request)
        top_k, k = list_lengths(asked, self.bundle, self.reranker, int(self.parameter("max_k")))
        pipeline.check_reached(self.gallery, pipeline.check_sequence(asked.get("min_sequence")))
        reranked = self.reranker != "none" and "candidate_features" in request.requested_output_names()
        return (top_k, k if reranked else 0), (features,)

    def run(self, key, features):
        top_k, k = key
        size = self.gallery.count
        if not size:
            raise EmptyGalleryError(
                "nobody is enrolled", where="gallery", fix="enroll at least one identity before identifying"
            )
        found = pipeline.shortlist(self.gallery, features, top_k, k)
        return {
            "candidate_ids": np.ascontiguousarray(found.entry_ids, np.int64),
            "candidate_identity": to_bytes(found.identities),
            "shortlist_distance": np.ascontiguousarray(found.distances, np.float32),
            "candidate_features": np.ascontiguousarray(found.features, np.float32),
            "gallery_state": np.tile(np.array([size, found.sequence], np.int64), (len(features), 1)),
        }

    def finalize(self):
        super().finalize()
        self.gallery.close()
