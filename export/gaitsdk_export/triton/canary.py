"""Asks a server for one made-up walk through all of its models: `python -m gaitsdk_export.triton.canary URL`.

Triton's `/v2/health/ready` says that the models are loaded; it stays 200 when the process of one has died.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

from gaitsdk.errors import GaitError, ServerError
from gaitsdk.runtimes.addresses import Security
from gaitsdk.runtimes.retries import check_seconds
from gaitsdk.runtimes.tensors import Request
from gaitsdk.runtimes.transport import open_transport, send
from gaitsdk.runtimes.wire import GALLERY

#: Seconds for connecting and the answer.
TIMEOUT = 5.0
_HEALTH = Request(GALLERY, {"action": np.array([b"health"], object)}, ("description",))


def check(url: str, *, timeout: float = TIMEOUT, security: Security | None = None) -> dict[str, Any]:
    """Sees that a server identifies and that its gallery is whole. Nobody enrolled yet is a healthy answer too.

    Args:
        url: as in `gaitsdk.Recognizer.connect`.
        timeout: seconds until it is taken for ill.
        security: token and certificates, where a proxy asks for them.

    Returns:
        `entries` and `sequence` of the gallery, `ms` that it took the server.

    Raises:
        ServerError: it does not answer, not in time, or not rightly. OptionError: `url` or `timeout` is unusable.
    """
    timeout = check_seconds(timeout)
    transport = open_transport(url, security or Security())
    try:
        answer = send(transport, _HEALTH, timeout, retries=0)
        return dict(json.loads(answer["description"].ravel()[0]))
    except GaitError as error:
        raise ServerError(f"the canary failed: {error}", fix="see the server's log") from error
    finally:
        transport.close()


def main(arguments: list[str] | None = None) -> int:
    """The command: exit code 0 where the server is well, else 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m gaitsdk_export.triton.canary", description=check.__doc__)
    parser.add_argument("url", help="grpc://host:8001, http://host:8000, ...")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        found = check(given.url, timeout=given.timeout)
    except GaitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{json.dumps(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
