"""The image, compose and the proxy: nothing here can run a container, so they are read, and compared with the code."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gaitsdk.bundle import Bundle
from gaitsdk_export.serving_cli import serve
from gaitsdk_export.triton.configurations import Options, configurations
from gaitsdk_export.triton.hardening import DRAIN_TIMEOUT, FIXED_CONTAINER, MAX_INPUT
from gaitsdk_export.triton.lint import shared_memory
from gaitsdk_export.triton.server import START_TIMEOUT

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
UNITS = {"Mi": 2**20, "Gi": 2**30, "m": 2**20, "mb": 2**20, "g": 2**30, "gb": 2**30}


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def serve_options(arguments: list[str]) -> dict[str, Any]:
    """What `gaitsdk serve` reads from these arguments; it refuses those that it does not know."""
    app = typer.Typer()
    app.command()(serve)
    with typer.main.get_command(app).make_context("serve", list(arguments)) as context:
        return dict(context.params)


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """(instruction, its text), in order."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def entrypoint(dockerfile: list[tuple[str, str]]) -> list[str]:
    (found,) = (json.loads(text) for name, text in dockerfile if name == "ENTRYPOINT")
    return [str(each) for each in found]


def test_the_image_is_pinned_and_new_enough(dockerfile: list[tuple[str, str]]) -> None:
    assert dockerfile[0][0] == "ARG"
    name, _, image = dockerfile[0][1].partition("=")
    release = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d\.\d\d)-py3(@sha256:[0-9a-f]{64})?", image)
    assert release is not None and release[1] >= FIXED_CONTAINER
    stages = [text for instruction, text in dockerfile if instruction == "FROM"]
    assert stages == [f"${{{name}}} AS wheels", f"${{{name}}}"], "wheels have to fit the Python that runs them"


def test_the_order_of_the_instructions(dockerfile: list[tuple[str, str]]) -> None:
    last = max(i for i, (name, _) in enumerate(dockerfile) if name == "FROM")
    final = [name for name, _ in dockerfile[last:]]
    assert final == "FROM RUN ENV WORKDIR USER EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT".split()
    texts = dict(dockerfile[last:])
    assert "--no-index" in texts["RUN"] and "curl" not in texts["RUN"]
    uid, gid = map(int, texts["USER"].split(":"))
    assert uid >= 10_000 and gid >= 10_000
    assert set(map(int, texts["EXPOSE"].split())) == set(PORTS.values()) and texts["STOPSIGNAL"] == "SIGTERM"


def test_no_secret_is_in_the_image(dockerfile: list[tuple[str, str]]) -> None:
    text = (DEPLOY / "Dockerfile").read_text().lower()
    assert not re.search(r"password|secret|api_key|:latest|\bsudo\b|\badd\b https?:|pip_index|chmod 777", text)
    named = " ".join(value for name, value in dockerfile if name in ("ARG", "ENV"))
    assert not re.search(r"(token|key|credential)\w*=", named, re.IGNORECASE)


def test_only_what_the_wheel_needs_is_sent(dockerfile: list[tuple[str, str]]) -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    sent = {line[1:] for line in rules if line.startswith("!")}
    assert rules[0] == "*" and "**/__pycache__" in rules
    assert all((ROOT / each).exists() for each in sent)
    needed = {"setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"}
    assert sent == needed | {"sdk", "export", "training"}


def test_the_entry_point_is_a_command_that_exists(dockerfile: list[tuple[str, str]]) -> None:
    command = entrypoint(dockerfile)
    assert command[:2] == ["gaitsdk", "serve"], "no shell, and signals reach the server"
    options = serve_options(command[2:])
    assert options["production"] and str(options["log"]) == "-"


def test_what_the_image_installs_is_enough(dockerfile: list[tuple[str, str]], tmp_path: Path) -> None:
    assert dict(dockerfile)["RUN"].endswith('"gaitsdk[client]"')
    program = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "yaml", "pandas", "matplotlib"):
    sys.modules[name] = None
from gaitsdk_export.serving_cli import check_networks, prepare_gallery
from gaitsdk_export.triton import canary, replica, repository, server
from gaitsdk_export.triton.backend import Settings
settings = Settings(gallery={str(tmp_path / "people.db")!r}, device="cpu")
check_networks(settings, "cargait")
prepare_gallery(settings)
repository.render(None, {str(tmp_path / "models")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_health_check_is_a_command_that_exists(dockerfile: list[tuple[str, str]]) -> None:
    check = dict(dockerfile)["HEALTHCHECK"]
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python3", "-m"] and importlib.util.find_spec(command[2]) is not None
    seconds = {name: int(number) for name, number in re.findall(r"--([a-z-]+)=(\d+)s", check)}
    assert seconds["start-period"] >= START_TIMEOUT and seconds["timeout"] > float(command[-1])


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_only_the_proxy_can_be_reached(compose: dict[str, Any]) -> None:
    server, proxy = compose["services"]["server"], compose["services"]["proxy"]
    assert "ports" not in server and "network_mode" not in server
    assert all(compose["networks"][name]["internal"] for name in server["networks"])
    assert proxy["ports"] == ["8443:8443"] and proxy["depends_on"]["server"]["condition"] == "service_healthy"
    assert set(server["networks"]["inside"]["aliases"]) == {host for host, _ in upstreams()}


def test_the_containers_can_do_little(compose: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "privileged" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] and service["mem_limit"]
        assert not service["image"].endswith(":latest") and ":" in service["image"]
    server = compose["services"]["server"]
    assert server["user"] == dict(dockerfile)["USER"]
    assert int(server["stop_grace_period"][:-1]) > DRAIN_TIMEOUT + 4
    assert enough_shared_memory(size(server["shm_size"])) and size(server["mem_limit"]) > 2 * size(server["shm_size"])


def test_what_compose_mounts_is_there_and_what_is_written_is_writable(compose: dict[str, Any]) -> None:
    context = (DEPLOY / compose["services"]["server"]["build"]["context"]).resolve()
    assert context == ROOT and (context / compose["services"]["server"]["build"]["dockerfile"]).is_file()
    proxy = [volume.split(":") for volume in compose["services"]["proxy"]["volumes"]]
    assert all(mode == "ro" for _, _, mode in proxy)
    assert any((DEPLOY / source).is_file() and target == "/etc/nginx/nginx.conf" for source, target, _ in proxy)
    options = serve_options(compose["services"]["server"]["command"])
    volumes = compose["services"]["server"]["volumes"]
    writable = [volume.rpartition(":")[2] for volume in volumes if not volume.endswith(":ro")]
    assert writable == ["/gallery"] == [str(options["gallery"].parent)] == [str(options["audit"].parent)]
    assert any(volume.endswith(f":{options['bundle']}:ro") for volume in volumes)
    assert options["host"] == "0.0.0.0" and options["behind_proxy"]


def enough_shared_memory(available: int) -> bool:
    """Four times what the shipped bundle needs at full batches: networks have up to four times its features."""
    return available >= 4 * shared_memory(configurations(Bundle.load(None), Options()))


def nginx() -> str:
    return re.sub(r"#.*", "", (BASE / "nginx.conf").read_text())


def upstreams() -> set[tuple[str, int]]:
    return {(host, int(port)) for host, port in re.findall(r"server ([a-z-]+):(\d+);", nginx())}


def test_the_proxy_wants_a_token_and_bounds_requests() -> None:
    text = nginx()
    assert re.search(r'map \$http_authorization \$actor \{\s*default "";', text)
    assert re.search(r'if \(\$actor = ""\) \{\s*return 401;', text)
    assert size(re.search(r"client_max_body_size (\w+);", text)[1]) == MAX_INPUT  # type: ignore[index]
    for kind in ("proxy", "grpc"):
        assert f"{kind}_set_header triton_actor $actor;" in text, "for the audit"
        assert f'{kind}_set_header authorization "";' in text
        assert f"{kind}_next_upstream off;" in text, "nothing is enrolled twice"
    assert "listen 8443 ssl;" in text and "TLSv1.1" not in text


def test_what_changes_the_gallery_goes_to_the_writer() -> None:
    blocks = dict(re.findall(r"location (.+?) \{\s*(.+?);\s*\}", nginx()))
    assert blocks["= /v2/models/gallery/infer"] == "proxy_pass http://writer"
    assert blocks["= /inference.GRPCInferenceService/ModelInfer"] == "grpc_pass grpc://writer-grpc"
    assert blocks["~ ^/v2/models/(identify|embed|shortlist|rerank)/infer$"] == "proxy_pass http://readers"
    assert blocks["/"] == "return 404" and len(blocks) == 4


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    configuration = local_proxy(tmp_path, {host: "127.0.0.1" for host, _ in upstreams()})
    done = subprocess.run(["nginx", "-t", "-c", configuration], capture_output=True, text=True)
    assert done.returncode == 0 and "emerg" not in done.stderr, done.stderr


def local_proxy(folder: Path, changes: dict[str, str]) -> Path:
    """The configuration for this machine: paths below `folder`, other addresses, and what nginx before 1.25 wants."""
    text = (BASE / "nginx.conf").read_text()
    text = text.replace("/tmp/", f"{folder}/").replace("/etc/nginx/", f"{folder}/").replace("/dev/std", f"{folder}/std")
    version = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (1, 25):
        text = text.replace("listen 8443 ssl;", "listen 8443 ssl http2;").replace("http2 on;", "")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "tokens").mkdir()
    (folder / "tls").mkdir()
    subject = ("-addext", "subjectAltName=IP:127.0.0.1")
    names = (
        "-keyout",
        folder / "tls" / "tls.key",
        "-out",
        folder / "tls" / "tls.crt",
        "-subj",
        "/CN=localhost",
        *subject,
    )
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names],
        check=True,
        capture_output=True,
    )
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


def test_an_option_that_serve_does_not_know_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        serve_options(["--behind-a-proxy"])
