"""gallery: who is enrolled. One request does one `action`; what it changes is durable before the answer.

    enroll      identity, silhouettes [F, S, S] (all sequences, one after the other; [F, C, S, S] for a model of C
                maps), lengths [n] -> entry_id [n]
    delete      identity -> count: entries deleted
    list        -> identity [n]
    count       -> count: entries
    thumbnails  entry_id [n] -> thumbnail [n, S, S]; all zero where there is none
    describe    -> description: JSON, what answers here
    health      -> description: JSON; an error unless one made-up walk gets through all models and the gallery is whole

Every answer carries `sequence`, the gallery's commit number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from contextlib import suppress

import numpy as np

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk.engine import describe
from gaitsdk.errors import CalibrationError, EmptyGalleryError, GalleryError, InputError, OptionError, ServerError
from gaitsdk.runtimes.statuses import typed
from gaitsdk.runtimes.wire import EMBED, IDENTIFY, RERANK, encode_error
from gaitsdk.silhouettes import check_silhouettes
from gaitsdk_export.triton.backend import Model, asked_by, example_walk, to_bytes


class TritonPythonModel(Model):
    def open(self):
        self.gallery = self.settings.open_gallery(self.bundle)
        self.actions = {
            "enroll": self.enroll,
            "delete": self.delete,
            "list": lambda request: {"identity": to_bytes(self.gallery.identities())},
            "count": lambda request: {"count": np.array([self.gallery.count], np.int64)},
            "thumbnails": self.thumbnails,
            "describe": self.describe,
            "health": self.health,
        }
        self.file = os.stat(self.gallery.location)
        self.measured, self.measure_again = None, 0.0
        self.metrics.declare("gaitsdk_enrolled_entries_total")
        self.metrics.declare("gaitsdk_deleted_entries_total")
        self.description = self.example = None

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        self.began = time.perf_counter()
        try:
            action = self.text(request, "action")
            if action not in self.actions:
                raise OptionError("unknown action", where="action", got=repr(action), expected=", ".join(self.actions))
            outputs = self.actions[action](request)
            with suppress(GalleryError):  # whoever enrolled has enrolled
                self.measure()
            return self.answer(request, {**outputs, "sequence": np.array([self.gallery.sequence], np.int64)})
        except Exception as error:  # noqa: BLE001 - whatever it is, the server lives and the caller gets a typed error
            return self.refuse(error, request)

    def enroll(self, request):
        identity = self.text(request, "identity")
        with self.changing("enroll", request, identity) as done:
            entries = self.embed_and_add(request, identity)
            done |= {"entries": entries, "sequence": self.gallery.sequence}
        self.events.write("enrolled", **asked_by(request), entries=len(entries), ms=self.elapsed_ms())
        self.metrics.add("gaitsdk_enrolled_entries_total", len(entries))
        return {"entry_id": np.asarray(entries, np.int64), "count": np.array([len(entries)], np.int64)}

    def embed_and_add(self, request, identity):
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
        self.check_file()
        return pipeline.enroll(self.gallery, identity, sequences, features)

    def delete(self, request):
        identity = self.text(request, "identity")
        with self.changing("delete", request, identity) as done:
            self.check_file()
            deleted = pipeline.delete(self.gallery, identity)
            done |= {"count": deleted, "sequence": self.gallery.sequence}
        self.events.write("deleted", **asked_by(request), entries=deleted, ms=self.elapsed_ms())
        self.metrics.add("gaitsdk_deleted_entries_total", deleted)
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

    def check_file(self):
        """What is written into a file that has lost its name is gone with the server."""
        path = self.gallery.location
        if not os.path.exists(path) or not os.path.samestat(self.file, os.stat(path)):
            raise GalleryError("the file was replaced or removed", where="gallery", fix="start the server again")

    def health(self, request):
        self.check_file()
        spec = self.bundle.manifest.input
        example = example_walk(spec.size, spec.channels)[None]
        try:
            found = self.ask(
                IDENTIFY, {"silhouettes": example}, ["fingerprint", "distance"], top_k=1, threshold="0", canary=True
            )
            usable = np.isfinite(found["distance"]).all() and self.bundle.fingerprint.encode() in found["fingerprint"]
        except EmptyGalleryError:  # nothing to search
            self.example, usable = self.embed(example)[0], True
        if self.reranker != "none":  # which `identify` may pass by: the walk itself is its candidate
            if self.example is None:
                self.example = self.embed(example)[0]
            pair = {"features": self.example, "candidate_features": self.example[:, None]}
            usable = usable and np.isfinite(self.ask(RERANK, pair, ["rerank_distance"])["rerank_distance"]).all()
        if not usable:
            raise ServerError("the models give no usable answer", where="health", fix="see the server's log")
        state = {"entries": self.gallery.count, "sequence": self.gallery.sequence, "ms": self.elapsed_ms()}
        return {"description": to_bytes([json.dumps(state)])}

    def measure(self):
        """Tells how large the gallery is. Counting identities reads them all: it takes 5 % of the time at most."""
        state = self.gallery.sequence
        if state == self.measured:
            return
        self.metrics.set("gaitsdk_gallery_sequence", state)
        self.metrics.set("gaitsdk_gallery_entries", self.gallery.count)
        started = time.perf_counter()
        if started < self.measure_again:
            return
        self.metrics.set("gaitsdk_gallery_identities", len(self.gallery.identities()))
        ended = time.perf_counter()
        self.measured, self.measure_again = state, ended + 19 * (ended - started)

    def embed(self, silhouettes):
        """Asks `embed`: [B, T, S, S] -> features [B, s, d], and what executes it."""
        found = self.ask(EMBED, {"silhouettes": np.ascontiguousarray(silhouettes)}, ["features", "runtime"])
        return found["features"], found["runtime"]

    def ask(self, model, inputs, outputs, **parameters):
        """Asks another model of this server; raises the error that it met."""
        tensors = [self.pb.Tensor(name, array) for name, array in inputs.items()]
        answer = self.pb.InferenceRequest(
            model_name=model, requested_output_names=outputs, inputs=tensors, parameters=parameters
        ).exec()
        if answer.has_error():
            raise typed("INTERNAL", answer.error().message(), f"model {model}", 0.0)
        return {name: self.pb.get_output_tensor_by_name(answer, name).as_numpy() for name in outputs}

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
        super().finalize()
        self.gallery.close()
