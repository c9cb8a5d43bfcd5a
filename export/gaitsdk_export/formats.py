"""What can be exported: formats, precisions, and the ranges of sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gaitsdk.bundle import PRECISIONS, kind_of
from gaitsdk.errors import OptionError
from gaitsdk.runtimes.tensorrt_runtime import ENGINE_FORMATS

if TYPE_CHECKING:
    from gaitsdk_export.wrappers import ExportWrapper

FORMATS = ("onnx", "torchscript", *ENGINE_FORMATS)
#: What `export_bundle` makes where nobody says what: runs everywhere.
DEFAULT_FORMATS = ("onnx", "torchscript")


@dataclass(frozen=True)
class Job:
    """One artefact to make of each network."""

    format: str
    precision: str

    @property
    def kind(self) -> str:
        """Its name in a bundle: "onnx", "onnx-fp16", "tensorrt-rtx-bf16" ..."""
        return kind_of(self.format, self.precision)


def plan(formats: str | Sequence[str], precisions: str | Sequence[str] = ("fp32",)) -> list[Job]:
    """Every format in every precision, without repetition.

    Args:
        formats: of FORMATS; "onnx-fp16" asks for one precision of one format.
        precisions: of PRECISIONS.

    Raises:
        OptionError: none, or one that is not known.
    """
    wanted = _known(precisions, PRECISIONS, "precision")
    single = {kind_of(name, precision): Job(name, precision) for name in FORMATS for precision in PRECISIONS[1:]}
    jobs: list[Job] = []
    for name in _known(formats, (*FORMATS, *single), "format", shown=FORMATS):
        jobs += [single[name]] if name in single else [Job(name, precision) for precision in wanted]
    return list(dict.fromkeys(jobs))


def _known(
    given: str | Sequence[str], known: Sequence[str], what: str, shown: Sequence[str] | None = None
) -> list[str]:
    wanted = list(dict.fromkeys([given] if isinstance(given, str) else given))
    unknown = [each for each in wanted if each not in known]
    if unknown or not wanted:
        got = ", ".join(map(repr, unknown)) or "nothing"
        expected = "one or more of " + ", ".join(shown or known)
        raise OptionError(f"unknown {what}", where=f"{what}s", got=got, expected=expected)
    return wanted


@dataclass(frozen=True)
class Range:
    """Sizes of a free axis that an engine takes: the least, the one it is tuned for, the most."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise OptionError(
                "no range", where="range", got=str(self), expected="LEAST:BEST:MOST, each at least 1 and the one before"
            )

    def __str__(self) -> str:
        return f"{self.least}:{self.best}:{self.most}"

    @classmethod
    def parse(cls, text: str, where: str = "range") -> Range:
        """ "1:8:64" -> Range(1, 8, 64); "8" -> Range(8, 8, 8).

        Raises:
            OptionError: not three ascending whole numbers above 0.
        """
        parts = text.strip().split(":")
        if len(parts) not in (1, 3) or not all(each.isascii() and each.isdigit() for each in parts):
            raise OptionError("no range", where=where, got=repr(text), expected="LEAST:BEST:MOST, for example 1:8:64")
        numbers = [int(each) for each in parts] * (3 // len(parts))
        return cls(*numbers)

    @classmethod
    def parse_all(cls, text: str, where: str = "range") -> tuple[Range, ...]:
        """Several ranges, comma separated."""
        return tuple(cls.parse(each, where) for each in text.split(","))


@dataclass(frozen=True)
class Sizes:
    """The sizes that engines are built for. One optimisation profile for each range of frames.

    Attributes:
        batch: sequences (or probes) in a call; `batch.most` is the server's max_batch_size.
        frames: of a sequence; several ranges give several profiles of the backbone.
        candidates: K of a list; None = 1 to ten times the bundle's K, tuned for K.
    """

    batch: Range = Range(1, 8, 64)
    frames: tuple[Range, ...] = (Range(15, 30, 120),)
    candidates: Range | None = None

    def profiles(self, wrapper: ExportWrapper, k: int) -> tuple[Profile, ...]:
        """One profile per range of frames for a backbone, one for a re-ranker.

        Raises:
            OptionError: a range of frames begins below what the network takes.
        """
        lists = self.candidates or Range(1, max(k, 1), 10 * max(k, 1))
        symbols = {symbol for axes in wrapper.dynamic_axes.values() for symbol in axes.values()}
        found = []
        for frames in self.frames if "frames" in symbols else self.frames[:1]:
            ranges = {"batch": self.batch, "frames": frames, "candidates": lists}
            least = wrapper.least.get("frames", 1)
            if "frames" in symbols and frames.least < least:
                raise OptionError(
                    "the network takes no sequence as short",
                    where="frames",
                    got=str(frames),
                    expected=f"{least} or more",
                )
            found.append(Profile({symbol: ranges[symbol] for symbol in sorted(symbols)}))
        return tuple(found)


@dataclass(frozen=True)
class Profile:
    """The range of each free axis, by its name."""

    ranges: Mapping[str, Range] = field(hash=False)

    def shapes(self, wrapper: ExportWrapper) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Least, best and largest shape of each input."""
        found = {}
        for name, tensor in zip(wrapper.input_names, wrapper.example(), strict=True):
            axes = wrapper.dynamic_axes[name]
            least, best, most = (
                tuple(
                    getattr(self.ranges[axes[i]], which) if i in axes else size for i, size in enumerate(tensor.shape)
                )
                for which in ("least", "best", "most")
            )
            found[name] = (least, best, most)
        return found

    def to_dict(self) -> dict[str, list[int]]:
        """JSON-able: {"batch": [1, 8, 64], ...}."""
        return {symbol: [each.least, each.best, each.most] for symbol, each in self.ranges.items()}


def parse_capabilities(given: Iterable[str | int] | None) -> tuple[int, ...]:
    """Compute capabilities ("75", 86, "8.9") as ascending numbers without repetition.

    Raises:
        OptionError: something that is no compute capability.
    """
    numbers = set()
    for each in given or ():
        text = str(each).strip().lower().removeprefix("sm").replace(".", "")
        if not (text.isascii() and text.isdigit() and 50 <= int(text) <= 999):
            raise OptionError(
                "no compute capability", where="sm", got=repr(each), expected="for example 75,80,86,89,120"
            )
        numbers.add(int(text))
    return tuple(sorted(numbers))
