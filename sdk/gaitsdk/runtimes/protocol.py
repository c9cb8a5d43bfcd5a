"""What every runtime can do, and the checks that all of them share.

Shapes: B sequences in a batch, T frames, S pixels (height = width), K candidates, s strips, d dimensions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gaitsdk.checks import check_frames
from gaitsdk.errors import BundleError, InputError, RuntimeUnavailableError, SilhouetteShapeError, SilhouetteValueError

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle, Network

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]
Silhouettes = NDArray[np.uint8]

#: Frames, and candidate pairs, that go through a network in one call. More are sent in several calls, because the
#: largest feature map of a 2-D stage grows with B x T (64 channels of 64x44 floats are 0.7 MB a frame).
FRAMES_PER_CALL = {"cpu": 256, "cuda": 4096}
PAIRS_PER_CALL = {"cpu": 512, "cuda": 8192}


@runtime_checkable
class NetworkRuntime(Protocol):
    """Executes the two networks of a bundle. May be used from several threads at once."""

    @property
    def name(self) -> str:
        """ "torch", "torchscript" or "onnx"."""
        ...

    @property
    def device(self) -> str:
        """The device really used: "cpu" or "cuda:N"."""
        ...

    def embed(self, silhouettes: Silhouettes) -> Features:
        """`[B, T, S, S]` uint8, normalised -> `F [B, s, d]` float32. (`[B, T, C, S, S]` for models of C maps.)

        Raises:
            SilhouetteShapeError: another rank or size, or no frame.
            SilhouetteValueError: another dtype.
        """
        ...

    def rerank(self, probe: Features, candidates: Features) -> Features:
        """`[B, s, d]`, `[B, K, s, d]` float32 -> the re-ranker's distances `[B, K]` float32, lower is nearer.

        Raises:
            InputError: shapes that do not fit each other or the bundle, or a value that is not finite.
            RuntimeUnavailableError: the bundle has no re-ranker.
        """
        ...

    def close(self) -> None:
        """Lets the networks go. Calling it twice does no harm; embed and rerank raise afterwards."""
        ...


@dataclass(frozen=True)
class Artefact:
    """A compiled network whose checksum was compared, as bytes: what was checked is what gets loaded."""

    path: str
    content: bytes
    record: dict[str, Any]


def read_artefact(bundle: Bundle, network: Network, kind: str) -> Artefact:
    """Reads a compiled network of a bundle and makes sure that it was made from this bundle's weights.

    Raises:
        RuntimeUnavailableError: the bundle has no such artefact.
        BundleError: it was changed after the export, or comes from other weights than the bundle holds now.
    """
    path = bundle.artefact(network, kind)
    fix = f"gaitsdk export {bundle.path} --to {kind}"
    if path is None:
        raise RuntimeUnavailableError(
            f"the bundle has no {kind} of the {network}",
            where=str(bundle.path),
            fix=f"{fix}, or choose another runtime",
        )
    beside = path.with_name(f"{path.name}.export.json")
    try:
        content = path.read_bytes()
        record = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            "the artefact or its record cannot be read", where=str(path), got=str(error), fix=fix
        ) from error
    expected = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256": bundle.manifest.files[f"{network}.safetensors"].sha256,
        "fingerprint": bundle.fingerprint,
    }
    if not isinstance(record, dict):
        raise BundleError("the artefact's record is not a JSON object", where=str(beside), fix=fix)
    for key, value in expected.items():
        if record.get(key) != value:
            what = "the artefact was changed after its export" if key == "sha256" else "the artefact is stale"
            raise BundleError(
                what,
                where=str(path),
                got=f"{key} {record.get(key)}",
                expected=f"{key} {value}",
                fix=f"re-export: {fix}",
            )
    if record.get("verdict") != "OK":
        logger.warning("%s was exported without comparing its answers (verdict %s)", path, record.get("verdict"))
    return Artefact(str(path), content, record)


def has_artefacts(bundle: Bundle, kind: str) -> bool:
    """True where every network of the bundle has an artefact of this kind."""
    needed: tuple[Network, ...] = ("backbone",) if bundle.manifest.reranker is None else ("backbone", "reranker")
    return all(bundle.artefact(network, kind) is not None for network in needed)


def check_silhouettes(silhouettes: Silhouettes, bundle: Bundle) -> Silhouettes:
    """The batch as a C-contiguous uint8 array, once rank, size and dtype are right."""
    array = np.asarray(silhouettes)
    check_frames(array.shape, bundle.manifest.input.size, bundle.manifest.input.channels, axes="BT")
    if array.dtype != np.uint8:
        raise SilhouetteValueError("wrong dtype", where="silhouettes", got=array.dtype, expected="uint8 in 0..255")
    if array.shape[1] == 0:
        raise SilhouetteShapeError("no frame", where="silhouettes", got=list(array.shape), expected="T >= 1")
    return np.ascontiguousarray(array)


def check_pairs(probe: Features, candidates: Features, bundle: Bundle) -> tuple[Features, Features]:
    """Both as C-contiguous float32 arrays, once their shapes fit and every value is finite."""
    if bundle.manifest.reranker is None:
        raise RuntimeUnavailableError(
            "the bundle has no re-ranker", where=str(bundle.path), fix="Recognizer.load(..., reranker='none')"
        )
    p, c = np.asarray(probe), np.asarray(candidates)
    strips, dims = bundle.strips, bundle.dims
    if p.ndim != 3 or p.shape[1:] != (strips, dims):
        raise InputError("wrong shape", where="probe", got=list(p.shape), expected=f"[B, {strips}, {dims}]")
    if c.ndim != 4 or c.shape[2:] != (strips, dims) or c.shape[0] != p.shape[0]:
        expected = f"[{p.shape[0]}, K, {strips}, {dims}]"
        raise InputError("wrong shape", where="candidates", got=list(c.shape), expected=expected)
    for name, array in (("probe", p), ("candidates", c)):
        if array.dtype.kind != "f":
            raise InputError("wrong dtype", where=name, got=array.dtype, expected="float32")
        if not np.isfinite(array).all():
            raise InputError("NaN or infinite values", where=name, expected="finite features", fix="embed them again")
    return np.ascontiguousarray(p, np.float32), np.ascontiguousarray(c, np.float32)


def embed_in_parts(
    run: Callable[[Silhouettes], Features], silhouettes: Silhouettes, bundle: Bundle, device: str
) -> Features:
    """Sends a checked batch through `run` in slices of whole sequences, so that memory stays bounded."""
    batch, frames = silhouettes.shape[:2]
    out = np.empty((batch, bundle.strips, bundle.dims), np.float32)
    for part in _slices(batch, FRAMES_PER_CALL[device.split(":")[0]] // frames):
        out[part] = run(silhouettes[part])
    _require_finite(out, "backbone", bundle)
    return out


def rerank_in_parts(
    run: Callable[[Features, Features], Features], probe: Features, candidates: Features, bundle: Bundle, device: str
) -> Features:
    """Sends checked pairs through `run` in slices of whole lists, so that memory stays bounded."""
    batch, k = candidates.shape[:2]
    out = np.empty((batch, k), np.float32)
    if out.size:  # a list without candidates has nothing to compare, and no network takes an empty batch
        for part in _slices(batch, PAIRS_PER_CALL[device.split(":")[0]] // k):
            out[part] = run(probe[part], candidates[part])
    _require_finite(out, "reranker", bundle)
    return out


def _slices(count: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, start + step) for start in range(0, count, step))


def _require_finite(out: Features, network: str, bundle: Bundle) -> None:
    if not np.isfinite(out).all():
        raise BundleError(
            f"the {network} answered with NaN or infinite values",
            where=str(bundle.path),
            fix="its weights or its compiled artefact are damaged: export again, or train again",
        )
