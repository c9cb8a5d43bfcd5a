"""Renders a model repository from a bundle; `gaitsdk_export.triton.configurations` says what is in it.

It holds shapes and the model's fingerprint, but no path: bundle and gallery come from the server's environment
(`gaitsdk_export.triton.backend.Settings`). Weights are in it only as engines. Rendering twice gives the same bytes.

MODEL/config.pbtxt
MODEL/N/                 the version: model.py, or model.plan with the record of its export
MODEL/warmup/            what the server asks the model before it counts as ready
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from gaitsdk.bundle import Bundle, replace_folder
from gaitsdk.errors import ExportError
from gaitsdk.runtimes.wire import DECIDE, EMBED, GALLERY, IDENTIFY, RERANK, SHORTLIST
from gaitsdk_export.triton import warmup
from gaitsdk_export.triton.configurations import Options, configurations, networks_of
from gaitsdk_export.triton.engines import BACKBONE, CHECK, PLAN, RECORD, RERANKER, read_engines
from gaitsdk_export.triton.pbtxt import to_text

__all__ = ["Options", "configurations", "differences", "render", "rendered_files"]

TEMPLATES = Path(__file__).parent / "python_models"
#: An ensemble's version folder is empty, and git keeps no empty folder; Triton ignores the file.
PLACEHOLDER = ".gitkeep"
_MODELS = frozenset({CHECK, BACKBONE, EMBED, SHORTLIST, RERANKER, RERANK, DECIDE, IDENTIFY, GALLERY})


def render(
    bundle_path: str | os.PathLike[str] | None, out_dir: str | os.PathLike[str], options: Options | None = None
) -> Path:
    """Writes the repository; `out_dir` changes whole or not at all.

    Args:
        bundle_path: a folder NAME.gait, or None for the shipped bundle.
        out_dir: the repository; of an existing one other versions stay and all else is replaced. Any other folder with
            something in it is refused.

    Returns:
        `out_dir` as a Path.

    Raises:
        BundleError: the bundle cannot be read. OptionError: it lacks the re-ranker.
        ExportError: there is something else at `out_dir`, or it cannot be written.
    """
    out = Path(out_dir)
    files = dict(rendered_files(bundle_path, options))
    try:
        _refuse_foreign(out)
        _replace(out, files)
    except OSError as error:
        raise ExportError(
            "the model repository cannot be written",
            where=str(out),
            got=str(error),
            fix="name a folder where you may write: --out FOLDER",
        ) from error
    return out


def _replace(out: Path, files: Mapping[str, bytes]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for name, content in files.items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        for version in _other_versions(out, files):
            # Linked, not copied: engines are large, and nobody writes into them.
            shutil.copytree(out / version, work / version, copy_function=os.link)
        work.chmod(0o755)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _other_versions(out: Path, files: Mapping[str, bytes]) -> list[str]:
    """Version folders ("embed/1") of the rendered models that are there and are not rendered now: they stay."""
    rendered = {PurePosixPath(name).parent.as_posix() for name in files}
    there = (path for model in {name.partition("/")[0] for name in files} for path in (out / model).glob("[0-9]*"))
    found = [path.relative_to(out).as_posix() for path in there if path.is_dir()]
    return sorted(name for name in found if name not in rendered)


def differences(
    bundle_path: str | os.PathLike[str] | None, out_dir: str | os.PathLike[str], options: Options | None = None
) -> list[str]:
    """What in `out_dir` is not as rendering would write it now: "NAME: missing", "changed" or "unexpected".

    Raises:
        ExportError: it cannot be read.
    """
    out = Path(out_dir)
    expected = dict(rendered_files(bundle_path, options))
    try:
        found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    except OSError as error:
        raise ExportError("the model repository cannot be read", where=str(out), got=str(error)) from error
    report = [f"{name}: missing" for name in expected if name not in found]
    kept = tuple(f"{version}/" for version in _other_versions(out, expected))
    report += [f"{name}: unexpected" for name in found if name not in expected and not name.startswith(kept)]
    report += [f"{n}: changed" for n, content in expected.items() if n in found and found[n] != content]
    return sorted(report)


def rendered_files(
    bundle_path: str | os.PathLike[str] | None, options: Options | None = None
) -> Iterator[tuple[str, bytes]]:
    """(path in the repository, content) of every file."""
    bundle, options = Bundle.load(bundle_path), options or Options()
    engines = read_engines(bundle, networks_of(bundle, options))
    spec = bundle.manifest.input
    for model in configurations(bundle, options, engines):
        version = f"{model.name}/{options.version}"
        yield f"{model.name}/config.pbtxt", to_text(model).encode()
        if model.steps:
            yield f"{version}/{PLACEHOLDER}", b""
        elif model.backend == "python":
            yield f"{version}/model.py", (TEMPLATES / model.name / "model.py").read_bytes()
        else:
            engine = engines[model.name]
            yield f"{version}/{RECORD}", engine.record_text
            if options.weights:
                yield f"{version}/{PLAN}", engine.content
        if any(each.data == warmup.WALK for request in model.warmup for each in request.inputs.values()):
            yield f"{model.name}/warmup/{warmup.WALK}", warmup.walk(spec.size, spec.channels).tobytes()


def _refuse_foreign(out: Path) -> None:
    """Rendering replaces a folder: make sure that it is a model repository of ours, or empty."""
    if not out.exists():
        return
    foreign = sorted(each.name for each in out.iterdir() if each.name not in _MODELS) if out.is_dir() else ["a file"]
    if foreign:
        raise ExportError(
            "there is something that is no model of this repository",
            where=str(out),
            got=", ".join(foreign[:5]),
            fix="name a new folder, or remove these",
        )
