"""shortlist: features [B, s, d] -> the M nearest entries of the gallery, and the feature maps of the first K.

Request parameters: `top_k` (default 10), `k` (default: the bundle's K). One instance: it holds the gallery's index.
"""

from __future__ import annotations

import numpy as np

from gaitsdk import pipeline
from gaitsdk.errors import EmptyGalleryError, InputError
from gaitsdk.recognizer import TOP_K
from gaitsdk_export.triton.backend import Batched, request_parameters, to_bytes


class TritonPythonModel(Batched):
    def open(self):
        self.gallery = self.settings.open_gallery(self.bundle)
        self.reranked = self.bundle.manifest.reranker is not None

    def read(self, request):
        features = self.require(request, "features")
        if not np.isfinite(features).all():
            raise InputError("NaN or infinite values", where="features", fix="send what embed answers")
        asked = request_parameters(request)
        top_k = pipeline.check_count(asked.get("top_k", TOP_K), "top_k")
        k = pipeline.check_count(asked.get("k", self.bundle.manifest.k), "k", minimum=1 if self.reranked else 0)
        return (top_k, k if self.reranked else 0, "candidate_features" in request.requested_output_names()), (features,)

    def run(self, key, features):
        top_k, k, with_maps = key
        size = self.gallery.count
        if not size:
            raise EmptyGalleryError(
                "nobody is enrolled", where="gallery", fix="enroll at least one identity before identifying"
            )
        found = pipeline.shortlist(self.gallery, features, top_k, k if with_maps else 0)
        return {
            "candidate_ids": np.ascontiguousarray(found.entry_ids, np.int64),
            "candidate_identity": to_bytes(found.identities),
            "shortlist_distance": np.ascontiguousarray(found.distances, np.float32),
            "candidate_features": np.ascontiguousarray(found.features, np.float32),
            "gallery_size": np.full((len(features), 1), size, np.int64),
        }

    def finalize(self):
        self.gallery.close()
