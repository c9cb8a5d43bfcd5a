"""The one tree of errors. Every message says what went wrong, where, what was got, what was expected and the fix."""

from __future__ import annotations


class GaitError(Exception):
    """Root of everything that gaitsdk raises on purpose.

    Args:
        what: one sentence, what is wrong.
        where: the argument, file, frame or server that it is about.
        got: the value or its shape and dtype, as found.
        expected: what would have been right.
        fix: what the caller can do now.
    """

    #: True where trying the same call again later may succeed.
    retryable = False

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        super().__init__(self._message())

    def amend(self, *, where: str | None = None, got: object = None, fix: str | None = None) -> None:
        """Replaces parts of the message, where somebody on the way up knows more."""
        self.where = self.where if where is None else where
        self.got = self.got if got is None else got
        self.fix = self.fix if fix is None else fix
        self.args = (self._message(),)

    def _message(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        parts = [text.rstrip(".")]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        message = "; ".join(parts) + "."
        return message if self.fix is None else f"{message} Fix: {self.fix}"


class InputError(GaitError, ValueError):
    """An argument is unusable."""


class SilhouetteError(InputError):
    """A silhouette sequence cannot be used."""


class NoFramesError(SilhouetteError):
    """There is no frame at all, or none survives normalisation."""


class TooFewFramesError(SilhouetteError):
    """Fewer usable frames than a walk needs."""


class TooManyFramesError(SilhouetteError):
    """More frames than one sequence may have."""


class PolarityError(SilhouetteError):
    """Background and foreground are swapped (the person is black on white)."""


class StaticSequenceError(SilhouetteError):
    """All frames are identical: a picture, not a walk."""


class SilhouetteShapeError(SilhouetteError):
    """Wrong rank or size."""


class SilhouetteValueError(SilhouetteError):
    """Wrong dtype or values: NaN, infinite, out of range, object."""


class OptionError(InputError):
    """An option has an unknown name or an impossible value."""


class UnknownModelError(OptionError):
    """No registered model has this name."""


class UnknownRuntimeError(OptionError):
    """No runtime has this name."""


class RuntimeUnavailableError(GaitError):
    """The runtime exists but cannot run here: package, artefact or device missing."""


class MissingDependencyError(GaitError, ImportError):
    """A package of an extra is not installed; the message has the pip line."""


class CheckpointError(GaitError):
    """A checkpoint does not fit any known architecture, or may not be read safely."""


class BundleError(GaitError):
    """A bundle is missing, damaged, or of another format version."""


class GalleryError(GaitError):
    """A gallery cannot be used."""


class EmptyGalleryError(GalleryError):
    """Nobody is enrolled."""


class UnknownIdentityError(GalleryError, KeyError):
    """Nobody of that name is enrolled."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class GalleryCorruptError(GalleryError):
    """The file is no gallery, or damaged."""


class GalleryLockedError(GalleryError):
    """Another process holds the write lock for longer than the time-out."""

    retryable = True


class GalleryBehindError(GalleryError):
    """The gallery has not reached the commit that the question asks for."""

    retryable = True


class ModelMismatchError(GalleryError):
    """The gallery's features come from another model than the one in use."""


class CalibrationError(GaitError):
    """A threshold was calibrated for other conditions than these."""


class ExportError(GaitError):
    """An export failed, or the exported network does not give the same answers."""


class ServerError(GaitError):
    """The Triton server answered with an error, or could not be started."""

    #: True where an enrolment or deletion may have been carried out all the same: look before asking again.
    outcome_unknown = False


class ServerUnavailableError(ServerError):
    """No server answers at that address, or the connection broke before the answer was complete."""

    retryable = True
    #: False where the request certainly did not reach the server, so that it was not carried out.
    reached = True


class DeadlineExceededError(ServerError):
    """The answer did not come in time."""

    retryable = True


class QueueFullError(ServerError):
    """The server refuses work because its queue is full."""

    retryable = True


class AnswerError(ServerError):
    """An answer came, but it is none of Triton's, or lacks what was asked for."""


class AccessDeniedError(ServerError):
    """The server, or the proxy before it, does not accept the token."""


class TlsError(ServerError):
    """No secure connection: the certificate of one side is not accepted by the other, or one of them speaks no TLS."""


class DatasetError(GaitError):
    """A dataset folder or file is missing, empty or malformed."""


class TrainingError(GaitError):
    """Training cannot go on: the loss is not finite, or the data do not suffice."""
