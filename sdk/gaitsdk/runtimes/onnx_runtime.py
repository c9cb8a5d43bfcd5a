"""ONNX Runtime: the default runtime; needs no torch."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from gaitsdk.errors import BundleError, MissingDependencyError, RuntimeUnavailableError
from gaitsdk.runtimes.protocol import (
    Features,
    Silhouettes,
    check_pairs,
    check_silhouettes,
    embed_in_parts,
    read_artefact,
    rerank_in_parts,
)

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle, Network

logger = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX Runtime is not installed",
            where="runtime 'onnx'",
            fix="pip install onnxruntime (or onnxruntime-gpu, never both)",
        ) from error
    return onnxruntime


def has_cuda() -> bool:
    """True where the installed ONNX Runtime was built with CUDA."""
    try:
        return _CUDA in import_onnxruntime().get_available_providers()
    except MissingDependencyError:
        return False


def cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_threads() -> int:
    """CPU threads of a backbone where nobody says how many."""
    return min(4, cores())


class OnnxRuntime:
    """Runs `artefacts/*.onnx` with ONNX Runtime. `InferenceSession.run` may be called from several threads.

    Args:
        bundle: whose artefacts to run.
        device: "auto" (CUDA where it really works, else the CPU), "cpu", "cuda" or "cuda:N".
        threads: of the backbone; default min(4, cores).
        reranker_threads: of the re-ranker; default 1.
        kind: of the backbone's artefact, "onnx" or "onnx-int8"; the re-ranker is fp32 either way.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int | None = None,
        reranker_threads: int | None = None,
        kind: str = "onnx",
    ) -> None:
        ort = import_onnxruntime()
        self.name, self._bundle = kind, bundle
        providers = _providers(ort, device)
        backbone = _session(ort, bundle, "backbone", threads or default_threads(), providers, kind)
        self.device = _device_in_use(backbone)
        if device.startswith("cuda") and self.device == "cpu":
            raise RuntimeUnavailableError(
                "ONNX Runtime has a CUDA provider that does not start here",
                where=f"device {device!r}",
                got=f"active providers {backbone.get_providers()}",
                fix="install the CUDA and cuDNN versions that this onnxruntime-gpu names, or device='cpu'",
            )
        if self.device == "cpu" and len(providers) > 1:
            logger.warning("ONNX Runtime has a CUDA provider that does not start here: the CPU is used")
        self.providers: tuple[str, ...] = tuple(backbone.get_providers())  # really in use
        self._backbone: Any | None = backbone
        self._reranker: Any | None = None
        if bundle.manifest.reranker is not None:
            self._reranker = _session(ort, bundle, "reranker", reranker_threads or 1, providers)

    def embed(self, silhouettes: Silhouettes) -> Features:
        session = self._open(self._backbone)
        batch = check_silhouettes(silhouettes, self._bundle)
        return embed_in_parts(
            lambda part: _run(session, "features", {"silhouettes": part}), batch, self._bundle, self.device
        )

    def rerank(self, probe: Features, candidates: Features) -> Features:
        probes, lists = check_pairs(probe, candidates, self._bundle)
        session = self._open(self._reranker)
        return rerank_in_parts(
            lambda p, c: _run(session, "distances", {"probe": p, "candidates": c}),
            probes,
            lists,
            self._bundle,
            self.device,
        )

    def close(self) -> None:
        self._backbone = self._reranker = None

    def _open(self, session: Any | None) -> Any:
        if session is None:
            raise RuntimeUnavailableError("the runtime was closed", where="runtime 'onnx'", fix="open it again")
        return session


def _run(session: Any, output: str, feed: dict[str, NDArray[Any]]) -> Features:
    try:
        features: Features = session.run([output], feed)[0]
    # Its exceptions have no public base class but Exception.
    except Exception as error:
        raise RuntimeUnavailableError(
            "ONNX Runtime could not execute the network",
            where="runtime 'onnx'",
            got=f"{str(error).strip()[:400]}, inputs { ({name: list(array.shape) for name, array in feed.items()}) }",
            fix="if memory ran out, send fewer or shorter sequences; else try runtime='torch'",
        ) from error
    return features


def _providers(ort: Any, device: str) -> list[Any]:
    """Execution providers for `device`; CUDA computes in full float32 (TF32 would be off by 1e-3)."""
    available = ort.get_available_providers()
    if device == "cpu" or (device == "auto" and _CUDA not in available):
        return ["CPUExecutionProvider"]
    if _CUDA not in available:
        raise RuntimeUnavailableError(
            "the installed ONNX Runtime has no CUDA provider",
            where=f"device {device!r}",
            got=f"providers {available}",
            fix="pip uninstall onnxruntime && pip install onnxruntime-gpu, or runtime='torch', or device='cpu'",
        )
    index = device.partition(":")[2] or "0"
    return [(_CUDA, {"device_id": index, "use_tf32": "0"}), "CPUExecutionProvider"]


def _device_in_use(session: Any) -> str:
    """What the session really runs on: ONNX Runtime drops a provider that does not start, and goes on without it."""
    if _CUDA not in session.get_providers():
        return "cpu"
    return f"cuda:{session.get_provider_options()[_CUDA].get('device_id', '0')}"


def _session(ort: Any, bundle: Bundle, network: Network, threads: int, providers: list[Any], kind: str = "onnx") -> Any:
    artefact = read_artefact(bundle, network, kind)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait busily for more work take the cores of other calls. Tried once by hand on two busy cores, no
    # script: one caller 13.0 instead of 12.4 ms, eight callers 69 instead of 55 identifications a second.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about its own graph rewriting
    # Weights lie in the artefact. One that names other files is refused, wherever those lie: there is no such folder.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", artefact.path)
    try:
        session = ort.InferenceSession(artefact.content, options, providers=providers)
    # Its exceptions have no public base class but Exception, and one for each of its status codes.
    except Exception as error:
        raise BundleError(
            "ONNX Runtime cannot load the artefact",
            where=artefact.path,
            got=str(error).splitlines()[0],
            fix=f"upgrade onnxruntime, or: gaitsdk export {bundle.path} --to {kind}",
        ) from error
    found = session.get_modelmeta().custom_metadata_map.get("gaitsdk.fingerprint")
    if found != bundle.fingerprint:
        raise BundleError(
            "the artefact is stale",
            where=artefact.path,
            got=f"fingerprint {found}",
            expected=f"fingerprint {bundle.fingerprint}",
            fix=f"re-export: gaitsdk export {bundle.path} --to {kind}",
        )
    return session
