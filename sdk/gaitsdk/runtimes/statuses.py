"""What a failed request means: gRPC's codes, HTTP's numbers and Triton's words as errors of our tree."""

from __future__ import annotations

from gaitsdk.errors import (
    AccessDeniedError,
    AnswerError,
    DeadlineExceededError,
    GaitError,
    InputError,
    QueueFullError,
    RuntimeUnavailableError,
    ServerError,
    ServerUnavailableError,
    TlsError,
)
from gaitsdk.runtimes.wire import MAX_MESSAGE_BYTES, decode_error

# gRPC's own words for a request that found no connection, and so was never sent.
_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "Name resolution failure")
_BAD_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "Ssl handshake failed", "Peer name", "Hostname Verif")


def typed(status: str, message: str, url: str, timeout: float) -> GaitError:
    """The error that a status (gRPC's code or HTTP's number) and its message stand for.

    Args:
        status: such as "StatusCode.UNAVAILABLE" or "503".
        message: what came with it; one of our own errors in it is that error.
        url: of the server.
        timeout: seconds that the attempt had.
    """
    told = decode_error(message)
    if told is not None:
        return told
    if "maximum queue size" in message.lower() or status == "429":
        return queue_full(url, message)
    if "request timeout expired" in message.lower():  # while it waited in the server's queue
        return too_late(url, timeout)
    if "is not healthy" in message:
        return ServerUnavailableError("a model of the server died", where=url, fix="start the server again")
    if "DEADLINE_EXCEEDED" in status or status in ("408", "504"):
        return too_late(url, timeout)
    if "RESOURCE_EXHAUSTED" in status or status == "413":
        # The same code for two things: what the caller sends is too large, or the server has no room just now.
        return too_large(url, message) if "larger than max" in message or status == "413" else queue_full(url, message)
    if status in ("401", "403") or "UNAUTHENTICATED" in status or "PERMISSION_DENIED" in status:
        got = f"{status}: {message}" if message else status
        return AccessDeniedError("access denied", where=url, got=got, fix="pass a token=... that the server accepts")
    if "UNAVAILABLE" in status or "CANCELLED" in status or status in ("502", "503"):
        if any(words in message for words in _BAD_TLS):
            return bad_tls(url, message)
        return unavailable(url, message, reached=not message.startswith(_NEVER_SENT))
    return ServerError("the server refused the request", where=url, got=f"{status}: {message}")


def unavailable(url: str, message: str, *, reached: bool) -> ServerUnavailableError:
    """Nobody there, or a connection that broke; `reached`: the request may have got to the server."""
    error = ServerUnavailableError(
        "no Triton server answers" if not reached else "the connection broke before the answer came",
        where=url,
        got=message or "no reason",
        fix="start one: gaitsdk serve, or check the address",
    )
    error.reached = reached
    return error


def too_late(url: str, timeout: float) -> DeadlineExceededError:
    """No answer within the attempt's time."""
    return DeadlineExceededError(
        "no answer in time", where=url, expected=f"one within {timeout:.3g} s", fix="pass a longer timeout"
    )


def too_large(url: str, message: str) -> InputError:
    """A request, or an answer, above the limit of a message."""
    expected = f"at most {MAX_MESSAGE_BYTES} bytes"
    return InputError("too large a request", where=url, got=message, expected=expected, fix="send less at once")


def queue_full(url: str, message: str) -> QueueFullError:
    """The server has more to do than it takes."""
    fix = "try again later, or send fewer at a time"
    return QueueFullError("the server's queue is full", where=url, got=message or None, fix=fix)


def bad_tls(url: str, message: str) -> TlsError:
    """The two sides do not accept each other."""
    return TlsError(
        "no secure connection",
        where=url,
        got=message,
        expected="a certificate for this host name from an authority that the client trusts",
        fix="pass ca=... (and cert=..., key=... where the server asks for them), or check that the port speaks TLS",
    )


def unreadable(url: str, error: Exception) -> AnswerError:
    """An answer came, but it is none of Triton's."""
    got = f"{type(error).__name__}: {error}"
    return AnswerError("the server's answer cannot be read", where=url, got=got, fix="check that it is a Triton server")


def was_closed(url: str) -> RuntimeUnavailableError:
    """The caller closed the connection."""
    return RuntimeUnavailableError("the recognizer was closed; connect again", where=url, fix="Recognizer.connect(...)")
