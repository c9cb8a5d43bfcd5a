"""Addresses, tokens and TLS of the clients."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.async_recognizer import AsyncRecognizer
from gaitsdk.errors import AccessDeniedError, GaitError, OptionError, ServerUnavailableError, TlsError
from gaitsdk.runtimes.addresses import Security, is_loopback, parse_address
from gaitsdk.runtimes.statuses import typed
from gaitsdk_export.triton.server import TritonServer

WALK = synthetic.sequence(3, type="nm-03", frames=12)


@pytest.mark.parametrize(
    ("url", "protocol", "tls", "netloc"),
    [
        ("localhost:8001", "grpc", False, "localhost:8001"),
        ("grpc://10.0.0.1:8001", "grpc", False, "10.0.0.1:8001"),
        ("grpcs://gait.example:443", "grpc", True, "gait.example:443"),
        ("http://[::1]:8000/", "http", False, "[::1]:8000"),
        ("https://gait.example:8443", "http", True, "gait.example:8443"),
    ],
)
def test_addresses(url: str, protocol: str, tls: bool, netloc: str) -> None:
    address = parse_address(url, Security())
    assert (address.protocol, address.tls, address.netloc) == (protocol, tls, netloc)
    assert address.url == f"{protocol}{'s' * tls}://{netloc}"


@pytest.mark.parametrize("url", ["http://alice:s3cret@host:8000", "https://s3cret@host:8000", "u:s3cret@host:x"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(OptionError, match="token=") as caught:
        Recognizer.connect(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["192.168.1.7", "gait.example", "localhost.example", "[2001:db8::1]", "127.example"])
@pytest.mark.parametrize("secret", [{"token": "s3cret"}, {"headers": {"key": "s3cret"}}], ids=["token", "header"])
def test_a_secret_does_not_travel_in_the_clear(host: str, secret: dict[str, Any]) -> None:
    for protocol in ("grpc", "http"):
        with pytest.raises(OptionError, match=f"{protocol}s://") as caught:
            Recognizer.connect(f"{protocol}://{host}:8001", **secret)
        assert "s3cret" not in str(caught.value)
        assert parse_address(f"{protocol}s://{host}:8001", Security(**secret)).headers
        assert parse_address(f"{protocol}://{host}:8001", Security(**secret, plaintext_token=True)).headers


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "127.0.0.1.example", "10.0.0.1", "")))
    assert parse_address("localhost:1", Security(token="t")).headers == {"authorization": "Bearer t"}


@pytest.mark.parametrize("token", ["", "a\nb", "a\r\nx-admin: 1", "naïve", 7, b"t"], ids=repr)
def test_a_token_that_no_header_can_carry(token: Any) -> None:
    with pytest.raises(OptionError, match="header") as caught:
        Recognizer.connect("localhost:8001", token=token)
    assert "admin" not in str(caught.value)


def test_secrets_do_not_show() -> None:
    security = Security(token="s3cret", headers={"key": "s3cret"})
    assert "s3cret" not in repr(security) + repr(parse_address("localhost:1", security))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("401", AccessDeniedError),
        ("403", AccessDeniedError),
        ("StatusCode.UNAUTHENTICATED", AccessDeniedError),
        ("StatusCode.PERMISSION_DENIED", AccessDeniedError),
        ("502", ServerUnavailableError),
    ],
)
def test_refusals_of_a_proxy(status: str, error: type[GaitError]) -> None:
    told = typed(status, "no", "grpcs://here:1", 1.0)
    assert type(told) is error and told.fix and told.where


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority `ca.pem`, which signed `server.pem` (for 127.0.0.1) and `client.pem`; `other.pem` is a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    folder = tmp_path_factory.mktemp("tls")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        pair = ("-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem")
        openssl("req", "-x509", *curve, *pair, "-days", "2", "-subj", f"/CN={name}")
    for name, alternative in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:gait.example"), ("client", "DNS:client")):
        openssl(
            "req", *curve, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "extension").write_text(f"subjectAltName={alternative}\n")
        signed = ("-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-days", "2")
        request = ("-in", f"{folder}/{name}.csr", "-out", f"{folder}/{name}.pem", "-extfile", f"{folder}/extension")
        openssl("x509", "-req", *request, *signed)
    return folder


class TlsProxy:
    """Takes TLS off connections to a server that speaks none, as an ingress does."""

    def __init__(self, target: int, folder: Path, name: str = "server", client_ca: str | None = None) -> None:
        self.target = target
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        if client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(folder / client_ca)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=self.listener.accept()[:1], daemon=True).start()

    def serve(self, plain: socket.socket) -> None:
        with suppress(OSError):
            near = self.context.wrap_socket(plain, server_side=True)
            far = socket.create_connection(("127.0.0.1", self.target))
            near.settimeout(0.02)  # TLS may not be read and written at once, so one thread does both
            far.settimeout(0.02)
            while True:
                for one, other in ((near, far), (far, near)):
                    with suppress(TimeoutError):
                        data = one.recv(1 << 16)
                        if not data:
                            near.close()
                            far.close()
                            return
                        other.settimeout(10)
                        other.sendall(data)
                        other.settimeout(0.02)

    def __enter__(self) -> TlsProxy:
        return self

    def __exit__(self, *about: object) -> None:
        self.listener.close()


PROTOCOLS = ("grpc", "http")


@pytest.fixture(params=PROTOCOLS)
def target(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[tuple[str, int]]:
    yield request.param, int(getattr(server, f"{request.param}_port"))


async def ask(url: str, **options: Any) -> Any:
    async with AsyncRecognizer.connect(url, **options) as recognizer:
        return await recognizer.identify(WALK)


def test_over_tls(target: tuple[str, int], remote: Recognizer, files: Path) -> None:
    expected = remote.identify(WALK).to_dict()["candidates"]
    with TlsProxy(target[1], files) as proxy:
        url, options = f"{target[0]}s://127.0.0.1:{proxy.port}", {"ca": files / "ca.pem", "timeout": 30, "token": "t"}
        with Recognizer.connect(url, **options) as recognizer:
            for _ in range(2):
                assert recognizer.identify(WALK).to_dict()["candidates"] == expected
        assert asyncio.run(ask(url, **options)).to_dict()["candidates"] == expected


@pytest.mark.parametrize(
    ("certificate", "trusted"), [("server", "other.pem"), ("server", None), ("elsewhere", "ca.pem")], ids=str
)
def test_a_server_that_is_not_the_right_one(
    target: tuple[str, int], files: Path, certificate: str, trusted: str | None
) -> None:
    with TlsProxy(target[1], files, certificate) as proxy:
        url = f"{target[0]}s://127.0.0.1:{proxy.port}"
        options = {"ca": files / trusted if trusted else None, "token": "s3cret"}
        with pytest.raises(TlsError, match="ca=") as caught:
            Recognizer.connect(url, **options)
        with pytest.raises(TlsError, match="ca=") as awaited:
            asyncio.run(ask(url, **options))
        for error in (caught.value, awaited.value):
            assert error.where == url and not error.retryable and "attempts" not in str(error)


def test_a_server_that_wants_the_clients_certificate(target: tuple[str, int], files: Path) -> None:
    own = {"cert": files / "client.pem", "key": files / "client.key"}
    with TlsProxy(target[1], files, client_ca="ca.pem") as proxy:
        url, options = f"{target[0]}s://127.0.0.1:{proxy.port}", {"ca": files / "ca.pem", "timeout": 30}
        with Recognizer.connect(url, **options, **own) as recognizer:
            assert recognizer.count > 0
        assert asyncio.run(ask(url, **options, **own)).candidates
        with pytest.raises((TlsError, ServerUnavailableError)):  # some clients see a connection closed, no more
            Recognizer.connect(url, **options)
        with pytest.raises((TlsError, ServerUnavailableError)):
            asyncio.run(ask(url, **options))


def test_tls_to_a_server_without(target: tuple[str, int], files: Path) -> None:
    url = f"{target[0]}s://127.0.0.1:{target[1]}"
    with pytest.raises(TlsError, match="speaks TLS"):
        Recognizer.connect(url, ca=files / "ca.pem")
    # asyncio tells of a connection reset during the handshake, no more.
    with pytest.raises((TlsError, ServerUnavailableError)):
        asyncio.run(ask(url, ca=files / "ca.pem"))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"ca": "none.pem"}, "ca"),
        ({"ca": "ca.key"}, "ca"),
        ({"key": "client.key"}, "key"),
        ({"cert": "client.pem", "key": "server.key"}, "key"),
        ({"cert": "client.pem", "key": "none.key"}, "key"),
        ({"cert": "client.key", "key": "client.pem"}, "cert"),
    ],
    ids=str,
)
def test_unusable_files(files: Path, options: dict[str, str], where: str) -> None:
    for protocol in PROTOCOLS:
        with pytest.raises(OptionError, match=where):
            Recognizer.connect(f"{protocol}s://127.0.0.1:1", **{name: files / file for name, file in options.items()})


def test_certificates_without_tls(files: Path) -> None:
    with pytest.raises(OptionError, match="grpcs://"):
        Recognizer.connect("localhost:8001", ca=files / "ca.pem")
