"""What every tritonserver of ours is started with so that nobody can change it, and which servers are too old."""

from __future__ import annotations

import secrets
from collections.abc import Container

import numpy as np

from gaitsdk.errors import ServerError
from gaitsdk_export.triton.audit import ACTOR

#: Seconds for requests in flight to finish when the server is told to stop.
DRAIN_TIMEOUT = 8
#: Never needed here: both front ends refuse them without a key that nobody knows.
CLOSED = ("shared-memory", "model-repository", "trace", "logging")
#: In production these as well: they tell strangers how the server is built, and operators have the metrics.
CLOSED_IN_PRODUCTION = (*CLOSED, "model-config", "statistics")
#: One HTTP request, in bytes. gRPC has no such option: the proxy in front has to limit it.
MAX_INPUT = 64 * 2**20
#: Options that only newer servers know, and that others are started without.
NEWER = {"--http-max-input-size", "--allow-client-shm"}
#: Before this version the Python backend sends zero bytes for every NumPy 2 array (python_backend pull request 384).
NUMPY2_SINCE = (2, 53)
#: The first version without the holes below, and the container that has it.
FIXED_SINCE, FIXED_CONTAINER = (2, 67), "26.03"
HOLES = (
    "CVE-2025-23310, 23311, 23317, 23319, 23320 and 23334 (NVIDIA bulletin 5687, fixed in 2.59.1), "
    "CVE-2026-24206 to 24209 (bulletin 5828, fixed in 2.67)"
)


def hardened_arguments(options: Container[str], *, production: bool) -> list[str]:
    """Arguments of every server: models and configuration are fixed, what is not needed is off, sizes are bounded.

    Args:
        options: what the server knows (`Installation.options`); newer options are left out where it does not.
        production: closes what only developers ask for, too.
    """
    closed = f"{','.join(CLOSED_IN_PRODUCTION if production else CLOSED)}:closed={secrets.token_hex(16)}"
    arguments = {
        "--model-control-mode": "none",
        "--disable-auto-complete-config": None,
        "--strict-readiness": "true",
        "--exit-on-error": "true",
        "--exit-timeout-secs": str(DRAIN_TIMEOUT),
        "--allow-sagemaker": "false",
        "--allow-vertex-ai": "false",
        "--allow-gpu-metrics": "false",
        "--allow-client-shm": "false",
        "--http-max-input-size": str(MAX_INPUT),
        # Who asks, for the audit: clients cannot set a parameter of this name, only a header.
        "--http-header-forward-pattern": f"(?i)^{ACTOR}$",
        "--grpc-header-forward-pattern": f"(?i)^{ACTOR}$",
        "--http-restricted-api": closed,
        "--grpc-restricted-protocol": closed,
    }
    known = {name: value for name, value in arguments.items() if name not in NEWER or name in options}
    return [part for pair in known.items() for part in pair if part is not None]


def known_holes(version: str) -> str | None:
    """The security holes that a server of this version is known to have, or None."""
    return HOLES if _numbers(version) < FIXED_SINCE else None


def check_version(version: str, *, production: bool) -> None:
    """Refuses a server that cannot answer rightly here, and in production one with known security holes.

    Raises:
        ServerError
    """
    if _numbers(version) < NUMPY2_SINCE and int(np.__version__.split(".")[0]) >= 2:
        raise ServerError(
            "this tritonserver answers with empty tensors under NumPy 2",
            where=f"tritonserver {version}",
            got=f"numpy {np.__version__}",
            expected=f"numpy < 2, or tritonserver >= {_text(NUMPY2_SINCE)}",
            fix="pip install 'numpy<2' 'opencv-python-headless<4.12'",
        )
    if production and (holes := known_holes(version)):
        raise ServerError(
            "this tritonserver has known security holes",
            where=f"tritonserver {version}",
            got=holes,
            expected=f"tritonserver >= {_text(FIXED_SINCE)}, NVIDIA's container {FIXED_CONTAINER} or later",
            fix="build deploy/Dockerfile; without --production this server may serve this machine",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
