"""Sequences of different lengths from many clients share batches, and nobody's answer depends on the others."""

from __future__ import annotations

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk import Recognizer, synthetic
from gaitsdk.pipeline import PADDING_LIMIT, batches, bucket, padding_limit
from gaitsdk.results import Identification
from gaitsdk_export.triton.server import TritonServer

CLIENTS, LENGTHS = 16, range(20, 41)


@settings(deadline=None)
@given(st.integers(1, 4000), st.sampled_from([1.0, 1.1, PADDING_LIMIT, 2.0]))
def test_a_bucket_is_a_range_of_lengths_within_the_padding_limit(length: int, padding: float) -> None:
    end = bucket(length, padding)
    assert length <= end == bucket(end, padding)
    shortest = next(each for each in range(length, 0, -1) if each == 1 or bucket(each - 1, padding) != end)
    assert end <= padding * shortest
    assert padding > 1 or end == length


def test_who_shares_a_batch_does_not_depend_on_who_else_is_there() -> None:
    alone = {length: bucket(length) for length in LENGTHS}
    together = [{LENGTHS[i] for i in group} for group in batches(LENGTHS, max_batch=100)]
    assert len(together) == len(set(alone.values())) == 4
    assert all(len({alone[length] for length in group}) == 1 for group in together)
    assert len(list(batches(LENGTHS, 100, padding_limit("alone")))) == len(LENGTHS), "nothing is padded"


@pytest.fixture(scope="module")
def walks() -> list[np.ndarray]:
    return [synthetic.sequence(i, type="nm-03", frames=frames) for i, frames in enumerate(LENGTHS)]


def embed_batch(server: TritonServer) -> tuple[int, int]:
    """Sequences that `embed` took so far, and executions that they took."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/embed/stats", timeout=10) as response:
        told = json.load(response)["model_stats"][0]
    return told["inference_count"], told["execution_count"]


def settled(server: TritonServer) -> tuple[int, int]:
    """The same, once nothing more comes: Triton counts after it has answered."""
    now = embed_batch(server)
    while True:
        time.sleep(0.1)
        before, now = now, embed_batch(server)
        if now == before:
            return now


def candidates(result: Identification) -> list[tuple[int, str]]:
    return [(each.entry_id, each.identity) for each in result.candidates]


def test_sixteen_clients_share_batches_and_get_their_own_answers(
    server: TritonServer, remote: Recognizer, local: Recognizer, walks: list[np.ndarray]
) -> None:
    alone = [local.identify(walk) for walk in walks]
    features = [remote.embed(walk) for walk in walks]
    before = settled(server)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [i % len(walks) for i in range(10 * CLIENTS)]
        answers = list(pool.map(lambda i: remote.identify(walks[i]), asked))
        embedded = list(pool.map(lambda i: remote.embed(walks[i]), asked))
    sequences, executions = (now - then for now, then in zip(settled(server), before, strict=True))
    assert sequences == 20 * CLIENTS
    assert sequences / executions > 1.2, f"{sequences} sequences of different lengths in {executions} batches"
    for i, answer, row in zip(asked, answers, embedded, strict=True):
        assert candidates(answer) == candidates(alone[i]) and answer.decision == alone[i].decision
        expected = [each.distance for each in alone[i].candidates]
        np.testing.assert_allclose([each.distance for each in answer.candidates], expected, atol=1e-4)
        assert np.abs(row - features[i]).max() <= 1e-6 * np.abs(features[i]).max(), "the answer depends on its batch"


def test_padding_to_a_bucket_changes_nothing(local: Recognizer, remote: Recognizer, walks: list[np.ndarray]) -> None:
    """Lists are padded by the client and in this process: sequences of a bucket become one array."""
    one_by_one = np.stack([local.embed(walk) for walk in walks])
    for recognizer in (local, remote):
        together = recognizer.embed(walks)
        assert np.abs(together - one_by_one).max() <= 1e-6 * np.abs(one_by_one).max()
