"""Where a verb asks instead of in this process, and how it proves who it is: options that several verbs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gaitsdk.errors import OptionError
from gaitsdk.recognizer import Recognizer
from gaitsdk.runtimes.retries import TIMEOUT

Server = Annotated[
    str | None,
    typer.Option(help="A server to ask instead: grpc://host:port or http://host:port; TLS: grpcs://, https://."),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="GAITSDK_TOKEN", help="Sent to the server as a bearer token. In a process list, options can be seen."
    ),
]
Ca = Annotated[Path | None, typer.Option(help="Certificates (PEM) that vouch for the server; the system's by default.")]
Cert = Annotated[Path | None, typer.Option(help="The client's own certificate (PEM), where the server asks for one.")]
Key = Annotated[Path | None, typer.Option(help="The private key (PEM) of --cert.")]
Timeout = Annotated[float, typer.Option(help="Seconds that the server has for a request, all attempts together.")]


@dataclass(frozen=True)
class Connection:
    """What these options say; `server` is None where everything happens in this process."""

    server: str | None = None
    token: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    timeout: float = TIMEOUT

    def open(self) -> Recognizer | None:
        """Connects to the server, or gives None where there is none.

        Raises:
            OptionError: options without their server, or unusable ones. The errors of `Recognizer.connect`.
        """
        if self.server is not None:
            return Recognizer.connect(
                self.server, token=self.token, timeout=self.timeout, ca=self.ca, cert=self.cert, key=self.key
            )
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        given += ["timeout"] if self.timeout != TIMEOUT else []
        if given:
            got = " ".join(f"--{name}" for name in given)
            raise OptionError("only for a server", where="--server", got=got, fix="name it: --server grpcs://host:port")
        return None
