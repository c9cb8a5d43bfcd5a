"""One HTTP/1.1 connection whose exchange ends at a given moment, however slowly bytes drip in."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gaitsdk.runtimes.addresses import Address
from gaitsdk.runtimes.statuses import bad_tls, unavailable
from gaitsdk.runtimes.wire import CONNECT_TIMEOUT, MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from gaitsdk.engine import Meanwhile


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of a response; `kept`: the connection may be used again."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    kept: bool


class HttpConnection:
    """Opens at once. For one thread at a time.

    Args:
        deadline: `time.monotonic()` until which it may take to connect, and CONNECT_TIMEOUT at most.

    Raises:
        ServerUnavailableError: nobody there; nothing was sent. TlsError.
    """

    def __init__(self, address: Address, context: ssl.SSLContext | None, deadline: float) -> None:
        timeout = max(min(CONNECT_TIMEOUT, deadline - time.monotonic()), 1e-3)
        if context is None:
            self._http = http.client.HTTPConnection(address.host, address.port, timeout=timeout)
        else:
            self._http = http.client.HTTPSConnection(address.host, address.port, timeout=timeout, context=context)
        try:
            self._http.connect()
        except ssl.SSLError as error:
            self._http.close()
            raise bad_tls(address.url, str(error)) from error
        except OSError as error:
            self._http.close()
            raise unavailable(address.url, str(error), reached=False) from error
        self._plain: socket.socket = self._http.sock
        self._timed = _TimedSocket(self._plain)
        self._http.sock = self._timed
        self._http.auto_open = 0  # never a second connection behind our back

    def is_fresh(self) -> bool:
        """Whether an idle connection is still open: the server has neither closed it nor sent anything unasked."""
        try:
            self._plain.setblocking(False)
            socket.socket.recv(self._plain, 1, socket.MSG_PEEK)  # below TLS, which cannot peek
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        deadline: float,
        meanwhile: Meanwhile | None = None,
    ) -> Answer:
        """Sends a request, calls `meanwhile` and reads the whole answer.

        Raises:
            TimeoutError, OSError, http.client.HTTPException: of the connection, which is of no more use then.
        """
        self._timed.deadline = deadline
        # A server that refuses what is too large answers and closes before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._http.request("POST", path, body, dict(headers))
        if meanwhile is not None:
            meanwhile()
        response = self._http.getresponse()
        content = response.read(MAX_MESSAGE_BYTES + 1)
        if len(content) > MAX_MESSAGE_BYTES:
            raise http.client.HTTPException(f"an answer of more than {MAX_MESSAGE_BYTES} bytes")
        if response.length:  # read(n) takes an early end for the end
            raise http.client.IncompleteRead(content, response.length)
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, content, kept=not response.will_close)

    def interrupt(self) -> None:
        """Ends an exchange of another thread with an error there."""
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()


class _TimedSocket:
    """A socket's operations with one deadline for all of them together, as `http.client` uses them."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self.deadline = 0.0

    def _arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._plain.settimeout(left)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._arm()
            view = view[self._plain.send(view) :]

    def receive(self, buffer: Any) -> int:
        self._arm()
        return self._plain.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self), 1 << 16)

    def close(self) -> None:
        self._plain.close()


class _Incoming(io.RawIOBase):
    def __init__(self, timed: _TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive(buffer)
