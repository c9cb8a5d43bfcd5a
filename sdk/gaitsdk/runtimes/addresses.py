"""Where a Triton server is and how a client proves who it is: addresses, certificates, tokens."""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from gaitsdk.errors import OptionError

File = str | os.PathLike[str]

_SCHEMES = {"grpc": ("grpc", False), "grpcs": ("grpc", True), "http": ("http", False), "https": ("http", True)}
_EXPECTED = "grpc://host:8001, http://host:8000, grpcs:// or https:// for TLS, or host:8001"


@dataclass(frozen=True)
class Security:
    """What a connection proves, and asks the server to prove.

    Attributes:
        token: sent with every request as `authorization: Bearer TOKEN`. Triton itself does not look at it: put a proxy
            in front of the server that does, and let nobody reach the server around it.
        headers: more headers (gRPC: metadata), such as the key of Triton's restricted APIs. Secrets, like the token.
        ca: file of the certificates (PEM) that vouch for the server; None = those that the system trusts (gRPC: those
            that come with grpcio).
        cert, key: files of the client's own certificate and private key (PEM), for servers that ask for one.
        plaintext_token: send the token and the headers without TLS, to hosts other than this one, too.
    """

    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    plaintext_token: bool = False

    def all_headers(self) -> dict[str, str]:
        """Headers of every request, names in lower case; OptionError where one cannot be sent."""
        token = {} if self.token is None else {"authorization": f"Bearer {_sendable('token', self.token)}"}
        return token | {_sendable("headers", k).lower(): _sendable("headers", v) for k, v in self.headers.items()}

    def tls_context(self) -> ssl.SSLContext:
        """For HTTP; OptionError where a file cannot be read or holds no certificate."""
        if self.key is not None and self.cert is None:
            raise OptionError("a private key without its certificate", where="key", fix="pass cert=... too")
        for where, path in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if path is not None:
                _read(where, path)
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise OptionError(
                "not certificates and keys that can be used",
                where="ca" if self.cert is None else "ca, cert or key",
                got=str(error),
                expected="PEM files; the key belongs to the certificate and has no password",
            ) from error
        return context

    def tls_bytes(self) -> dict[str, bytes | None]:
        """For gRPC: the arguments of `grpc.ssl_channel_credentials`, after the same checks."""
        self.tls_context()
        key = self.key if self.key is not None else self.cert  # one file may hold both
        files = {
            "root_certificates": ("ca", self.ca),
            "private_key": ("key", key),
            "certificate_chain": ("cert", self.cert),
        }
        return {name: None if path is None else _read(where, path) for name, (where, path) in files.items()}


@dataclass(frozen=True)
class Address:
    """A server's address, taken apart.

    Attributes:
        protocol: "grpc" or "http".
        tls: whether the connection is encrypted.
        host, port: where it listens; an IPv6 host without brackets.
        security: certificates and secrets.
        headers: of every request.
    """

    protocol: str
    tls: bool
    host: str
    port: int
    security: Security
    headers: Mapping[str, str] = field(repr=False)

    @property
    def netloc(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @functools.cached_property
    def url(self) -> str:
        """For messages."""
        return f"{self.protocol}{'s' if self.tls else ''}://{self.netloc}"


def parse_address(url: object, security: Security) -> Address:
    """Takes an address apart and sees that no secret travels in the clear.

    Raises:
        OptionError: not an address; certificates without TLS; a token without TLS to a host that is not this one.
    """
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if isinstance(url, str) and not separator:
        scheme, rest = "grpc", url
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port or 0
        secret = "@" in parts.netloc
        complete = scheme in _SCHEMES and bool(host and port and not secret) and parts.path in ("", "/")
        complete = complete and not parts.query and not parts.fragment
    except ValueError:
        complete, secret = False, "@" in rest
    if not complete:
        got = "an address with a name or password" if secret else repr(url)
        fix = "pass token=... instead" if secret else None
        raise OptionError("not the address of a Triton server", where="url", got=got, expected=_EXPECTED, fix=fix)
    protocol, tls = _SCHEMES[scheme]
    address = Address(protocol, tls, host, port, security, security.all_headers())
    given = [name for name in ("ca", "cert", "key") if getattr(security, name) is not None]
    if given and not tls:
        fix = f"{protocol}s://{address.netloc}"
        raise OptionError("certificates, but no TLS", where="url", got=f"{url!r} with {', '.join(given)}", fix=fix)
    if address.headers and not tls and not security.plaintext_token and not is_loopback(host):
        raise OptionError(
            "a token would travel in the clear",
            where="url",
            got=repr(url),
            expected="TLS, or a server on this machine",
            fix=f"{protocol}s://{address.netloc}, or plaintext_token=True where the network itself is protected",
        )
    return address


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host never leaves the machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sendable(where: str, text: object) -> str:
    """A header's name or value. The text itself is a secret, so no message shows it."""
    if isinstance(text, str) and text and text.isascii() and text.isprintable():
        return text
    raise OptionError(
        "cannot be sent in a header", where=where, got=type(text).__name__, expected="printable ASCII, not empty"
    )


def _read(where: str, path: File) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OptionError("the file cannot be read", where=where, got=f"{path}: {error.strerror}") from error


def _no_password() -> str:
    """Instead of OpenSSL's question on the terminal."""
    raise ValueError("the private key has a password")
