"""What every backbone is: silhouettes in, strip feature map out, for any mix of lengths."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gaitsdk.errors import InputError, NoFramesError, SilhouetteShapeError, SilhouetteValueError
from gaitsdk.models.blocks import (
    SeparateBNNecks,
    channels_last,
    frames_per_chunk,
    is_exporting,
    is_tracing,
    maximum_over,
)
from gaitsdk.models.options import ModelOptions


class GaitModel(nn.Module, abc.ABC):
    """A backbone: a silhouette sequence becomes a strip feature map F [s, d].

    A subclass names its `Options`, passes `strips` and `dims` to this constructor, implements `extract`, and, where
    OpenGait publishes checkpoints, `recognise`. Its state-dict keys are OpenGait's, so that those load as they are.

    Attributes:
        name: the name that it is registered under.
        strips, dims: s and d of F.
        input_size: (H, W) of one input frame.
        length_handling: how a shorter sequence may be padded in a batch: "cyclic" = repeating its frames from the
            start leaves F unchanged; "alone" = padding changes F, so only equal lengths share a batch.
        chunk_frames: how many frames `forward_sequences` lets through the network at once; None = what is fastest,
            16 to 96 on a CPU, 512 on a GPU.
        least_frames: fewest frames that an exported graph takes; the networks below that repeat frames, which a
            graph cannot decide.
        ignored_keys: last parts of the names of constants that OpenGait's checkpoints hold and this network computes.
        TAGS: options of the published configurations, by data set.
        verified: False where no public network or number exists to compare with.
    """

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    name: ClassVar[str] = ""
    length_handling: ClassVar[str] = "alone"
    input_channels: ClassVar[int] = 1
    least_frames: ClassVar[int] = 1
    ignored_keys: ClassVar[frozenset[str]] = frozenset()
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    verified: ClassVar[bool] = True
    chunk_frames: int | None = None

    def __init__(self, options: ModelOptions, *, strips: int, dims: int) -> None:
        super().__init__()
        self.config = options
        self.strips, self.dims = strips, dims
        self.input_size: tuple[int, int] = options.size

    @property
    def options(self) -> dict[str, Any]:
        """All options as plain JSON-able values: `create(model.name, **model.options)` builds the same network."""
        return self.config.to_dict()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> GaitModel:
        """A new network with random weights from options by name, as `create` takes them.

        Raises:
            OptionError: an unknown name or an impossible value.
        """
        construct = cast(Callable[[ModelOptions], GaitModel], cls)
        return construct(cls.Options.parse(cls.name, options))

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """The options that a checkpoint's names and shapes tell, or None where it is another architecture's."""
        return None

    @abc.abstractmethod
    def extract(self, x: Tensor) -> Tensor:
        """Feature map before any BN neck: x [B, T, H, W] float -> [B, s, d]."""

    @property
    def neck(self) -> SeparateBNNecks | None:
        """The BN neck with the training classifier, where the architecture has one."""
        return None

    def classify(self, features: Tensor) -> Tensor | None:
        """Logits of the training classifier: features [B, s, d] from `extract` -> [B, s', C], None without one."""
        neck = self.neck
        return None if neck is None or neck.num_classes is None else neck.logits(neck.normalise(features))

    def forward(self, x: Tensor) -> Tensor:
        """Strip feature map.

        Args:
            x: [B, T, H, W] float32 in 0..1, (H, W) = `input_size`, T >= 1 ([B, T, C, H, W] where C channels enter).

        Returns:
            F [B, s, d] float32, contiguous.

        Raises:
            SilhouetteShapeError: another rank or size. NoFramesError: T = 0. SilhouetteValueError: not floating.
        """
        self._check(x)
        return self._embedding(self.extract(x))

    def forward_train(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both that the losses need.

        Args:
            x: as for `forward`.

        Returns:
            F [B, s, d] before the BN neck (what the triplet loss takes, whatever `embedding` says) and the
            classifier's logits [B, s, C] ([B, 1, C] where it sees all strips at once), or None where the model has
            no classifier.
        """
        self._check(x)
        features = self.extract(x)
        return features, self.classify(features)

    @torch.no_grad()
    def forward_sequences(self, sequences: Sequence[Tensor]) -> Tensor:
        """Features of sequences of any lengths, each as if it were alone.

        Inference only: normalisation uses the running statistics even where the model is in training mode, no
        gradient is kept, and at most about `chunk_frames` frames (or one sequence, where the architecture looks
        across time) are in the network at once, so that memory does not grow with the number of sequences.

        Args:
            sequences: n tensors [T_i, H, W] float in 0..1, on any device.

        Returns:
            F [n, s, d] on the model's device.

        Raises:
            InputError: no tensor. Else as for `forward`; SilhouetteValueError also for values outside 0..1.
        """
        reference = next(self.parameters())
        ready = [self._ready(sequence, index, reference) for index, sequence in enumerate(sequences)]
        if not ready:
            return reference.new_zeros((0, self.strips, self.dims))
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            return self._embedding(self._extract_sequences(ready))
        finally:
            for module in training:
                module.training = True

    def for_inference(self) -> GaitModel:
        """A copy in eval mode without the training classifier: what a bundle stores and an exporter takes."""
        options = {**self.options, **({"num_classes": None} if "num_classes" in self.options else {})}
        copy = type(self).from_options(options)
        state = self.state_dict()
        copy.load_state_dict({key: state[key] for key in copy.state_dict()})
        reference = next(self.parameters())
        return copy.to(device=reference.device, dtype=reference.dtype).eval()

    def _embedding(self, features: Tensor) -> Tensor:
        neck = self.neck if getattr(self.config, "embedding", "fc") == "bnneck" else None
        return features if neck is None else neck.normalise(features)

    def _extract_sequences(self, sequences: list[Tensor]) -> Tensor:
        """Equal lengths share a batch; F before the BN neck, [n, s, d]."""
        groups: dict[int, list[int]] = {}
        for index, sequence in enumerate(sequences):
            groups.setdefault(sequence.shape[0], []).append(index)
        found: dict[int, Tensor] = {}
        for length, members in groups.items():
            step = max(1, self._chunk_frames() // length)
            for start in range(0, len(members), step):
                batch = members[start : start + step]
                features = self.extract(torch.stack([sequences[i] for i in batch]))
                found.update(zip(batch, features.unbind(0), strict=True))
        return torch.stack([found[index] for index in range(len(sequences))])

    def _chunk_frames(self) -> int:
        if self.chunk_frames is not None:
            return self.chunk_frames
        return frames_per_chunk(self)

    def _frame_shape(self) -> tuple[int, ...]:
        return self.input_size if self.input_channels == 1 else (self.input_channels, *self.input_size)

    def _check(self, x: Tensor) -> None:
        if is_tracing():
            return  # sizes are traced values there; the exporter's own input checks hold
        frame = self._frame_shape()
        expected = f"[B, T, {', '.join(map(str, frame))}]"
        if x.dim() != 2 + len(frame) or tuple(x.shape[2:]) != frame:
            raise SilhouetteShapeError(
                "the input has the wrong shape", where=self.name, got=tuple(x.shape), expected=expected,
                fix="normalise the silhouettes and cut them to the model's input size",
            )  # fmt: skip
        if not x.is_floating_point():
            raise SilhouetteValueError(
                "the input is not floating", where=self.name, got=x.dtype, expected="float32 in 0..1",
                fix="divide uint8 silhouettes by 255",
            )  # fmt: skip
        if x.shape[1] == 0:
            raise NoFramesError("the input has no frames", where=self.name, got=tuple(x.shape), expected=expected)

    def _ready(self, sequence: Tensor, index: int, reference: Tensor) -> Tensor:
        where = f"{self.name}: sequence {index}"
        if not isinstance(sequence, Tensor):
            raise InputError("a sequence is not a tensor", where=where, got=type(sequence).__name__)
        try:
            self._check(sequence.unsqueeze(0))
        except (SilhouetteShapeError, SilhouetteValueError, NoFramesError) as error:
            got = error.got if isinstance(error, SilhouetteValueError) else tuple(sequence.shape)
            expected = (error.expected or "").replace("[B, T,", "[T,")
            raise type(error)(error.what, where=where, got=got, expected=expected, fix=error.fix) from None
        low, high = (float(v) for v in sequence.aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise SilhouetteValueError(
                "values lie outside 0..1", where=where, got=f"{low}..{high}", expected="float32 in 0..1",
                fix="divide uint8 silhouettes by 255",
            )  # fmt: skip
        return sequence.to(device=reference.device, dtype=reference.dtype)


class FrameSetModel(GaitModel):
    """A backbone that sees a sequence as a set of frames: 2-D stages per frame, joined by maxima over the frames.

    Order and repetition of frames do not matter, so cyclic padding is exact, and sequences of any lengths can share
    one pass: their frames go through the 2-D stages in common chunks, then each sequence takes its own maximum.
    """

    length_handling: ClassVar[str] = "cyclic"

    @abc.abstractmethod
    def frame_maps(self, frames: Tensor) -> tuple[Tensor, ...]:
        """frames [N, 1, H, W] -> the maps [N, C_i, h_i, w_i] that are pooled over the frames of a sequence."""

    @abc.abstractmethod
    def set_features(self, pooled: tuple[Tensor, ...]) -> Tensor:
        """pooled maps [B, C_i, h_i, w_i] of whole sequences -> feature map before any BN neck [B, s, d]."""

    def extract(self, x: Tensor) -> Tensor:
        """x [B, T, H, W] -> [B, s, d]; frames are folded into the batch for the 2-D stages."""
        batch, time = x.shape[0], x.shape[1]
        height, width = self.input_size
        frames = channels_last(x.reshape(batch * time, self.input_channels, height, width))
        if torch.is_grad_enabled() or is_exporting():
            maps = self.frame_maps(frames)
        else:
            chunks = [self.frame_maps(chunk) for chunk in torch.split(frames, frames_per_chunk(self))]
            maps = tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))
        pooled = tuple(maximum_over(m.reshape(batch, time, *m.shape[1:]), dim=1) for m in maps)
        return self.set_features(pooled)

    def _extract_sequences(self, sequences: list[Tensor]) -> Tensor:
        maxima: list[tuple[Tensor, ...] | None] = [None] * len(sequences)
        for chunk in self._chunks([s.shape[0] for s in sequences]):
            frames = torch.cat([sequences[i][start:stop] for i, start, stop in chunk])
            maps = self.frame_maps(channels_last(frames.reshape(-1, self.input_channels, *self.input_size)))
            counts = [stop - start for _, start, stop in chunk]
            parts = zip(*(torch.split(m, counts) for m in maps), strict=True)
            for (index, _, _), part in zip(chunk, parts, strict=True):
                new = tuple(maximum_over(m, dim=0) for m in part)
                old = maxima[index]
                maxima[index] = new if old is None else tuple(map(torch.maximum, old, new))
        pooled = zip(*(m for m in maxima if m is not None), strict=True)
        return self.set_features(tuple(torch.stack(m) for m in pooled))

    def _chunks(self, lengths: list[int]) -> Iterator[list[tuple[int, int, int]]]:
        """Consecutive (sequence, start, stop) pieces, `chunk_frames` frames together."""
        chunk: list[tuple[int, int, int]] = []
        room = limit = self._chunk_frames()
        for index, length in enumerate(lengths):
            start = 0
            while start < length:
                stop = min(length, start + room)
                chunk.append((index, start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    yield chunk
                    chunk, room = [], limit
        if chunk:
            yield chunk
