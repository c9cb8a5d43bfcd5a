"""gallery: who is enrolled. One request does one `action`; what it changes is durable before the answer.

    enroll      identity, silhouettes [F, S, S] (all sequences, one after the other; [F, C, S, S] for a model of C
                maps), lengths [n] -> entry_id [n]
    delete      identity -> count: entries deleted
    identities  -> identity [n]
    count       -> count: entries
    thumbnails  entry_id [n] -> thumbnail [n, S, S]; all zero where there is none
    describe    -> description: JSON, what answers here

Every answer carries `sequence`, the gallery's commit number.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk.engine import describe
from gaitsdk.errors import CalibrationError, InputError, OptionError, ServerError
from gaitsdk.runtimes.wire import EMBED, decode_error, encode_error
from gaitsdk.silhouettes import check_silhouettes
from gaitsdk_export.triton.backend import Model, example_walk, to_bytes


class TritonPythonModel(Model):
    def open(self):
        self.gallery = self.settings.open_gallery(self.bundle)
        self.actions = {
            "enroll": self.enroll,
            "delete": self.delete,
            "identities": lambda request: {"identity": to_bytes(self.gallery.identities())},
            "count": lambda request: {"count": np.array([self.gallery.count], np.int64)},
            "thumbnails": self.thumbnails,
            "describe": self.describe,
        }
        self.description = None

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        try:
            action = self.text(request, "action")
            if action not in self.actions:
                raise OptionError("unknown action", where="action", got=repr(action), expected=", ".join(self.actions))
            outputs = self.actions[action](request)
            return self.answer(request, {**outputs, "sequence": np.array([self.gallery.sequence], np.int64)})
        except Exception as error:  # noqa: BLE001 - whatever it is, the server lives and the caller gets a typed error
            return self.refuse(error)

    def enroll(self, request):
        identity = self.text(request, "identity")
        frames, lengths = self.require(request, "silhouettes"), self.require(request, "lengths")
        if not len(lengths) or lengths.min() < 1 or lengths.sum() != len(frames):
            raise InputError(
                "the lengths do not cut the frames into sequences",
                where="lengths",
                got=f"{lengths.tolist()[:20]} for {len(frames)} frames",
                expected="one length >= 1 per sequence, together all frames",
            )
        sequences = np.split(frames, np.cumsum(lengths)[:-1])
        spec = self.bundle.manifest.input
        for sequence in sequences:
            check_silhouettes(sequence, spec.size, channels=spec.channels)
        features = pipeline.embed_many(
            lambda batch: self.embed(batch)[0],
            sequences,
            max_batch=int(self.parameter("max_batch")),
            length_handling=self.bundle.manifest.length_handling,
        )
        entries = pipeline.enroll(self.gallery, identity, sequences, features)
        return {"entry_id": np.asarray(entries, np.int64), "count": np.array([len(entries)], np.int64)}

    def delete(self, request):
        deleted = pipeline.delete(self.gallery, self.text(request, "identity"))
        return {"count": np.array([deleted], np.int64)}

    def thumbnails(self, request):
        entries = self.require(request, "entry_id").tolist()
        size = self.bundle.size
        pictures = pipeline.thumbnails(self.gallery, entries, size)
        none = np.zeros((size, size), np.uint8)
        stacked = np.stack([none if each is None else each for each in pictures]) if pictures else none[:0]
        return {"thumbnail": np.ascontiguousarray(stacked, np.uint8)}

    def describe(self, request):
        if self.description is None:
            spec = self.bundle.manifest.input
            example = example_walk(spec.size, spec.channels)[None]
            runtime = json.loads(self.embed(example)[1].ravel()[0])
            about = describe(self.bundle, self.reranker, runtime["runtime"], runtime["device"])
            self.description = json.dumps(
                {
                    **dataclasses.asdict(about),
                    "length_handling": self.bundle.manifest.length_handling,
                    "max_batch": int(self.parameter("max_batch")),
                    "verify_threshold": self.verify_threshold(about),
                }
            )
        return {"description": to_bytes([self.description])}

    def verify_threshold(self, about):
        """A number, None, or the text of the error that the client's `verify` raises."""
        calibration = self.bundle.manifest.calibration
        try:
            return threshold_for(calibration, task="verify", reranker=about.reranker, k=about.k, gallery_size=1)
        except CalibrationError as error:
            return encode_error(error)

    def embed(self, silhouettes):
        """Asks the model `embed` of this server: [B, T, S, S] -> features [B, s, d], and what executes it."""
        wanted = ["features", "runtime"]
        tensors = [self.pb.Tensor("silhouettes", np.ascontiguousarray(silhouettes))]
        answer = self.pb.InferenceRequest(model_name=EMBED, requested_output_names=wanted, inputs=tensors).exec()
        if answer.has_error():
            message = answer.error().message()
            raise decode_error(message) or ServerError("embed failed", got=message)
        return tuple(self.pb.get_output_tensor_by_name(answer, name).as_numpy() for name in wanted)

    def text(self, request, name):
        """An input of one string."""
        array = self.require(request, name).ravel()
        if len(array) != 1:
            raise InputError("exactly one string is needed", where=name, got=f"{len(array)} of them")
        try:
            return array[0].decode()
        except UnicodeDecodeError as error:
            raise InputError("not valid UTF-8", where=name, fix="encode the text as UTF-8") from error

    def finalize(self):
        self.gallery.close()
