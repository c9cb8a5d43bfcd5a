"""A bundle: the folder `NAME.gait/` with a model and everything that is needed to use it.

manifest.json            what it is; carries its own checksum and the sha256 of every file
backbone.safetensors     weights of the backbone (no classifier)
reranker.safetensors     weights of CarGait or of the binary classifier, where the bundle has one
artefacts/               compiled networks, each beside its NAME.export.json
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gaitsdk.errors import BundleError, OptionError
from gaitsdk.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Architecture,
    Calibration,
    InputSpec,
    Manifest,
    RerankerSpec,
    check_file,
    file_entry,
    fingerprint_of,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from torch import nn

Network = Literal["backbone", "reranker"]
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_FORMAT_SUFFIX = {"onnx": ".onnx", "torchscript": ".torchscript", "tensorrt": ".plan", "tensorrt-rtx": ".rtx.plan"}


def kind_of(format: str, precision: str) -> str:
    """An artefact's name in a bundle: "onnx", "onnx-fp16", "tensorrt-rtx-bf16" ..."""
    return format if precision == "fp32" else f"{format}-{precision}"


#: What the file of each kind of artefact ends in.
ARTEFACT_SUFFIX = {
    kind_of(format, precision): suffix if precision == "fp32" else f".{precision}{suffix}"
    for format, suffix in _FORMAT_SUFFIX.items()
    for precision in PRECISIONS
}


class Bundle:
    """A loaded bundle. Every file's sha256 has been checked.

    Attributes:
        path: the folder.
        manifest: the validated manifest.
        fingerprint: 64 hex digits: sha256 over architecture, options, input spec, embedding and the backbone's weights
            only, so that exporting or calibrating invalidates no gallery.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.fingerprint = fingerprint_of(manifest)
        self.size, self.strips, self.dims = manifest.input.size, manifest.strips, manifest.dims
        self.metric = manifest.distance

    @classmethod
    def default_path(cls) -> Path:
        """Where the shipped bundle lies."""
        return Path(__file__).parent / "bundles" / "default.gait"

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, *, artefacts: bool = True) -> Bundle:
        """Reads and checks a bundle (None = the shipped one).

        Args:
            artefacts: check the compiled networks too; False is for those who are about to replace them.

        Raises:
            BundleError: missing, another format version, or any byte of a listed file or of the manifest changed.
        """
        folder = cls.default_path() if path is None else _folder(path)
        manifest = read_manifest(folder)
        for name, entry in manifest.files.items():
            if artefacts or not name.startswith("artefacts/"):
                check_file(folder, name, entry)
        return cls(folder, manifest)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: nn.Module,
        reranker: nn.Module | None = None,
        k: int = 10,
        name: str | None = None,
        licence: str = "not stated",
        training: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Bundle:
        """Writes a bundle from trained networks; the folder appears whole or not at all.

        Args:
            path: the folder, `NAME.gait`.
            backbone: a `gaitsdk.models` model; its classifier, if any, is left behind.
            reranker: a `gaitsdk.models.cargait.CarGait`, likewise without its classifier, or a
                `gaitsdk.models.pair_classifier.PairClassifier`.
            k: length of the list to re-rank.
            licence: of the weights (SPDX name), as the user must see it.
            training: data and figures for people, stored as given (JSON-able).
            overwrite: replace a bundle that is there.

        Raises:
            OptionError: the folder's name is no NAME.gait, or the re-ranker is for other feature maps.
            BundleError: there is something already.
        """
        target = _folder(path)
        if target.suffix != ".gait":
            raise OptionError("a bundle's folder is called NAME.gait", where="path", got=str(target), fix="add .gait")
        if target.exists() and not overwrite:
            raise BundleError("there is something already", where=str(target), fix="pass overwrite=True to replace it")
        if target.exists() and not (target / MANIFEST).exists():
            raise BundleError("there is something that is no bundle", where=str(target), fix="choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.stem}-", dir=target.parent))
        try:
            manifest = _write_networks(work, backbone, reranker, k, name or target.stem, licence, dict(training or {}))
            write_manifest(work, manifest)
            work.chmod(0o755)
            for file in work.iterdir():
                file.chmod(0o644)  # a server runs as another user
            replace_folder(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return cls.load(target)

    def artefact(self, network: Network, kind: str) -> Path | None:
        """The compiled network of a kind ("onnx", "onnx-fp16": see `kind_of`), or None where the bundle has none."""
        name = f"artefacts/{network}{ARTEFACT_SUFFIX[kind]}"
        return self.path / name if name in self.manifest.files else None

    def add_artefact(
        self, network: Network, kind: str, source: Path, record: Mapping[str, Any], script: str | None = None
    ) -> Path:
        """Moves a compiled network into the bundle, with its export record and the script that makes it again, and
        lists all in the manifest."""
        folder = self.path / "artefacts"
        folder.mkdir(exist_ok=True)
        name = f"{network}{ARTEFACT_SUFFIX[kind]}"
        # Until the manifest is replaced too, a reader sees a checksum that differs and refuses: safe, never wrong.
        os.replace(source, folder / name)
        (folder / f"{name}.export.json").write_text(json.dumps(dict(record), indent=1, sort_keys=True) + "\n")
        listed = {f"artefacts/{each}" for each in (name, f"{name}.export.json")}
        if script is not None:
            again = folder / f"{name}.reproduce.sh"
            again.write_text(script, encoding="utf-8")
            again.chmod(0o755)
            listed.add(f"artefacts/{again.name}")
        return self._replace_manifest(listed=listed) / "artefacts" / name

    def annotate(
        self, *, training: Mapping[str, Any] | None = None, calibration: list[dict[str, Any]] | None = None
    ) -> None:
        """Replaces the notes on training and/or the calibration; the fingerprint stays."""
        changes: dict[str, Any] = {}
        if training is not None:
            changes["training"] = dict(training)
        if calibration is not None:
            changes["calibration"] = [Calibration.model_validate(entry) for entry in calibration]
        self._replace_manifest(**changes)

    def add_calibrations(self, entries: Iterable[Calibration]) -> None:
        """Adds thresholds to those of the bundle; one for the same conditions is replaced. The fingerprint stays.

        The manifest is read again first, and nobody else adds one meanwhile: what another process added stays.

        Raises:
            BundleError: the bundle holds another model by now, or cannot be written.
        """
        from gaitsdk.calibration import merge
        from gaitsdk.file_lock import locked

        try:
            with locked(self.path):
                current = read_manifest(self.path)
                if _networks(current) != _networks(self.manifest):
                    raise BundleError(
                        "another model is in the bundle by now", where=str(self.path), fix="load it and calibrate again"
                    )
                self.manifest = current
                self._replace_manifest(calibration=merge(current.calibration, entries))
        except OSError as error:
            raise BundleError(
                "the bundle cannot be written",
                where=str(self.path),
                got=str(error),
                fix="copy it to a folder that you may write, and calibrate the copy",
            ) from error

    def _replace_manifest(self, listed: set[str] | None = None, **changes: Any) -> Path:
        files = dict(self.manifest.files)
        files.update({name: file_entry(self.path / name) for name in listed or ()})
        self.manifest = self.manifest.model_copy(update={**changes, "files": files})
        write_manifest(self.path, self.manifest)
        return self.path

    def build_backbone(self) -> nn.Module:
        """The backbone with its weights, in eval mode (needs torch)."""
        from safetensors.torch import load_file

        from gaitsdk.models import create

        model = create(self.manifest.architecture.name, **self.manifest.architecture.options)
        model.load_state_dict(load_file(self.path / "backbone.safetensors"))
        return model.eval()

    def build_reranker(self) -> nn.Module | None:
        """CarGait or the binary classifier with its weights, in eval mode (needs torch), or None without re-ranker.

        Raises:
            BundleError: the manifest names a network that this release does not know.
        """
        spec = self.manifest.reranker
        if spec is None:
            return None
        from safetensors.torch import load_file

        from gaitsdk.models.cargait import CarGait
        from gaitsdk.models.pair_classifier import PairClassifier

        networks: dict[str, type[nn.Module]] = {each.name: each for each in (CarGait, PairClassifier)}
        if spec.name not in networks:
            raise BundleError(
                "no re-ranker of this release is called so",
                where=str(self.path),
                got=repr(spec.name),
                expected=" or ".join(networks),
                fix="use the gaitsdk release that wrote the bundle",
            )
        model = networks[spec.name](**spec.options)
        model.load_state_dict(load_file(self.path / "reranker.safetensors"))
        return model.eval()


def _networks(manifest: Manifest) -> tuple[Any, ...]:
    """What decides a distance, the re-ranker included."""
    return fingerprint_of(manifest), manifest.reranker, manifest.files.get("reranker.safetensors")


def _folder(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise BundleError("not a bundle's path", where="path", got=repr(path), expected="a folder NAME.gait")
    return Path(path)


def replace_folder(new: Path, target: Path) -> None:
    """Puts `new` in the place of `target`. The old one is moved aside first and comes back if anything fails."""
    old = new.with_name(f"{new.name}.old")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_networks(
    folder: Path,
    backbone: Any,
    reranker: Any | None,
    k: int,
    name: str,
    licence: str,
    training: dict[str, Any],
) -> Manifest:
    from safetensors.torch import save_file

    backbone = backbone.for_inference()
    save_file(_tensors(backbone), folder / "backbone.safetensors")
    spec = None
    if reranker is not None:
        reranker = reranker.for_inference()
        _check_fit(reranker, backbone)
        save_file(_tensors(reranker), folder / "reranker.safetensors")
        spec = RerankerSpec(name=reranker.name, options=reranker.options, k=k)
    height = backbone.input_size[0]
    names = [each.name for each in folder.iterdir()]
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        architecture=Architecture(name=backbone.name, options=backbone.options),
        input=InputSpec(size=height, cut=(height - backbone.input_size[1]) // 2, channels=backbone.input_channels),
        embedding=backbone.options.get("embedding", "fc"),
        strips=backbone.strips,
        dims=backbone.dims,
        length_handling=backbone.length_handling,
        reranker=spec,
        training=training,
        licence=licence,
        files={each: file_entry(folder / each) for each in sorted(names)},
    )


def _check_fit(reranker: Any, backbone: Any) -> None:
    """Raises OptionError unless the re-ranker takes the backbone's maps (CarGait: of any number of strips)."""
    strips = getattr(reranker, "strips", backbone.strips)
    if (strips, reranker.dims) != (backbone.strips, backbone.dims):
        raise OptionError(
            "the re-ranker does not fit the backbone",
            where="reranker",
            got=f"one for {strips} strips of {reranker.dims}",
            expected=f"{backbone.strips} strips of {backbone.dims}",
            fix="train one for this backbone: gaitsdk train reranker",
        )


def _tensors(model: Any) -> dict[str, Any]:
    return {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
