"""The Kubernetes manifests: nothing here can run a cluster, so they are read, and compared with the code."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gaitsdk_export.triton.hardening import DRAIN_TIMEOUT
from gaitsdk_export.triton.server import START_TIMEOUT

spec = importlib.util.spec_from_file_location("deploy_files", Path(__file__).with_name("test_deploy_files.py"))
assert spec is not None and spec.loader is not None
files = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
BASE, GPU, MONITORING = (files.DEPLOY / "kubernetes" / name for name in ("base", "gpu", "monitoring"))
serve_options, size, upstreams, PORTS = files.serve_options, files.size, files.upstreams, files.PORTS
dockerfile = files.dockerfile  # a fixture

API = {
    "ConfigMap": "v1",
    "Namespace": "v1",
    "PersistentVolumeClaim": "v1",
    "Service": "v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
}


def merged(onto: Any, patch: Any) -> Any:
    """What kustomize makes of a patch: mappings are merged, lists too where their items have names or mount paths."""
    if isinstance(onto, dict) and isinstance(patch, dict):
        return {**onto, **{key: merged(onto[key], value) if key in onto else value for key, value in patch.items()}}
    if isinstance(onto, list) and isinstance(patch, list):
        key = next((each for each in ("mountPath", "name") if all(each in item for item in (*onto, *patch))), None)
        if key is not None:
            ours = {item[key]: item for item in patch}
            left = [item for item in patch if item[key] not in {each[key] for each in onto}]
            return [merged(item, ours[item[key]]) if item[key] in ours else item for item in onto] + left
    return patch


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """What `kubectl apply -k deploy/kubernetes/base` applies, by the same rules."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    found = [each for name in kustomization["resources"] for each in yaml.safe_load_all((BASE / name).read_text())]
    (patch,) = kustomization["patches"]
    assert patch["target"]["labelSelector"] == "app.kubernetes.io/component in (writer, reader)"
    common = yaml.safe_load((BASE / patch["path"]).read_text())["spec"]
    for each in found:
        if each["metadata"].get("labels", {}).get("app.kubernetes.io/component") in ("writer", "reader"):
            each["spec"] = merged(each["spec"], common)
    return found


def of_kind(documents: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] in kinds}


def workloads(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return of_kind(documents, "Deployment", "StatefulSet")


def containers(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pod = document["spec"]["template"]["spec"]
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def server_of(document: dict[str, Any]) -> dict[str, Any]:
    first = document["spec"]["template"]["spec"]["containers"][0]
    assert first["name"] == "server"
    return dict(first)


SERVERS = ("gaitsdk-writer", "gaitsdk-readers")


def test_every_manifest_is_one(documents: list[dict[str, Any]]) -> None:
    others = list(yaml.safe_load_all((MONITORING / "pods.yaml").read_text()))
    for each in (*documents, *others):
        assert API[each["kind"]] == each["apiVersion"], each["metadata"]["name"]
    names = [(each["kind"], each["metadata"]["name"]) for each in documents]
    assert len(set(names)) == len(names) and set(workloads(documents)) == {*SERVERS, "gaitsdk-proxy"}


def test_selectors_find_what_they_are_for(documents: list[dict[str, Any]]) -> None:
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in workloads(documents).items()}
    for name, each in workloads(documents).items():
        assert each["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    selectors = {("Service", name): each["spec"]["selector"] for name, each in of_kind(documents, "Service").items()}
    budgets = of_kind(documents, "PodDisruptionBudget")
    selectors |= {("Budget", name): each["spec"]["selector"]["matchLabels"] for name, each in budgets.items()}
    for (kind, name), selector in selectors.items():
        found = [each for each, its in labels.items() if selector.items() <= its.items()]
        assert found == ["gaitsdk-proxy" if name == "gaitsdk" else name], (kind, name)
    assert ("Budget", "gaitsdk-writer") not in selectors, "with one pod it would only block the node's maintenance"


def test_ports_meet(documents: list[dict[str, Any]]) -> None:
    services = of_kind(documents, "Service")
    offered = set()
    for name, service in services.items():
        workload = workloads(documents)["gaitsdk-proxy" if name == "gaitsdk" else name]
        named = {port["name"]: port["containerPort"] for each in containers(workload) for port in each.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in named
            offered.add((name, port["port"]))
            assert name == "gaitsdk" or named[port["targetPort"]] == port["port"] == PORTS[port["targetPort"]]
    assert upstreams() <= offered
    for name in SERVERS:
        options = serve_options(server_of(workloads(documents)[name])["args"])
        assert {each: options[f"{each}_port"] for each in PORTS} == PORTS


def test_the_network_is_closed(documents: list[dict[str, Any]]) -> None:
    policies = {name: each["spec"] for name, each in of_kind(documents, "NetworkPolicy").items()}
    assert policies["gaitsdk-nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    proxy, prometheus = policies["gaitsdk-servers"]["ingress"]
    assert proxy["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "proxy"
    assert {each["port"] for each in proxy["ports"]} == {PORTS["http"], PORTS["grpc"]}
    assert {each["port"] for each in prometheus["ports"]} == {PORTS["metrics"]}
    assert {"namespaceSelector", "podSelector"} == set(prometheus["from"][0]), "both, not either"
    assert "egress" not in policies["gaitsdk-servers"]
    reached = {each["port"] for each in policies["gaitsdk-proxy"]["egress"][0]["ports"]}
    assert reached == {port for _, port in upstreams()}


def test_pods_can_do_little(documents: list[dict[str, Any]], dockerfile: list[tuple[str, str]]) -> None:
    (namespace,) = of_kind(documents, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, each in workloads(documents).items():
        pod = each["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False and not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
        user = f"{security['runAsUser']}:{security['runAsGroup']}"
        assert user == (dict(dockerfile)["USER"] if name in SERVERS else "101:101")
        for container in containers(each):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
            assert not container["image"].endswith(":latest")
            assert not any("value" in variable for variable in container.get("env", [])), "no secrets in manifests"


@pytest.mark.parametrize("name", SERVERS)
def test_probes_and_the_end(documents: list[dict[str, Any]], name: str) -> None:
    server = server_of(workloads(documents)[name])
    paths = {probe: server[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")}
    assert {probe: each["path"] for probe, each in paths.items()} == {
        "startup": "/v2/health/ready",
        "readiness": "/v2/health/ready",
        "liveness": "/v2/health/live",
    }
    assert {each["port"] for each in paths.values()} == {"http"}
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > START_TIMEOUT
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = workloads(documents)[name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pause + DRAIN_TIMEOUT + 4


@pytest.mark.parametrize("name", SERVERS)
def test_shared_memory_is_enough_and_counted(documents: list[dict[str, Any]], name: str) -> None:
    workload = workloads(documents)[name]
    volumes = {each["name"]: each for each in workload["spec"]["template"]["spec"]["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in server_of(workload)["volumeMounts"]}
    shm = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shm["medium"] == "Memory" and files.enough_shared_memory(size(shm["sizeLimit"]))
    assert size(server_of(workload)["resources"]["limits"]["memory"]) > 2 * size(shm["sizeLimit"])


def test_volumes_are_there(documents: list[dict[str, Any]]) -> None:
    claims = set(of_kind(documents, "PersistentVolumeClaim"))
    for workload in workloads(documents).values():
        pod = workload["spec"]["template"]["spec"]
        templates = {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])}
        declared = {each["name"] for each in pod["volumes"]} | templates
        used = {mount["name"] for each in containers(workload) for mount in each["volumeMounts"]}
        assert used == declared
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        } <= claims


def mount_of(container: dict[str, Any], path: Path) -> dict[str, Any]:
    return next(each for each in container["volumeMounts"] if Path(each["mountPath"]) in (path, *path.parents))


def test_the_gallery_has_one_writer_and_is_opened_nowhere_else(documents: list[dict[str, Any]]) -> None:
    writer, readers = (workloads(documents)[name] for name in SERVERS)
    assert writer["kind"] == "StatefulSet" and writer["spec"]["replicas"] == 1
    (claim,) = writer["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    galleries = {}
    for workload in (writer, readers):
        server = server_of(workload)
        options = serve_options(server["args"])
        assert options["behind_proxy"] and options["host"] == "0.0.0.0"
        galleries[workload["metadata"]["name"]] = str(options["gallery"])
        assert mount_of(server, options["gallery"])["name"] == "gallery", "a volume of its own, of no other machine"
        assert not mount_of(server, options["audit"]).get("readOnly")
        assert mount_of(server, options["bundle"])["readOnly"] is True
    published = set()
    for workload in (writer, readers):
        for each in containers(workload):
            if each["name"] != "server":
                assert each["command"] == ["python3", "-m", "gaitsdk_export.triton.replica"]
                action, source, target = each["args"][:3]
                inside, outside = (source, target) if action == "publish" else (target, source)
                assert action == ("publish" if workload is writer else "follow")
                assert inside == galleries[workload["metadata"]["name"]]
                shared = mount_of(each, Path(outside))
                assert shared["name"] == "shared" and shared.get("readOnly", False) == (workload is readers)
                published.add((shared["subPath"], outside))
    assert len(published) == 1
    volumes = {each["name"]: each for each in readers["spec"]["template"]["spec"]["volumes"]}
    assert "emptyDir" in volumes["gallery"]


def test_readers_are_scaled_by_a_metric_that_is_defined(documents: list[dict[str, Any]]) -> None:
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "gaitsdk-readers")
    assert "replicas" not in workloads(documents)["gaitsdk-readers"]["spec"], "the autoscaler's business"
    (metric,) = (each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"])
    (rule,) = yaml.safe_load((MONITORING / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric
    (monitor,) = yaml.safe_load_all((MONITORING / "pods.yaml").read_text())
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in PORTS


def test_gpus_are_a_patch() -> None:
    overlay = yaml.safe_load((GPU / "kustomization.yaml").read_text())
    (patch,) = (yaml.safe_load(each["patch"]) for each in overlay["patches"])
    (rendering,) = (each["value"] for each in patch if each["path"].endswith("args/-"))
    assert serve_options([rendering])["rendering"] == "tensorrt"
    assert any(each["path"].endswith("/limits/nvidia.com~1gpu") and each["value"] == "1" for each in patch)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_makes_the_same(documents: list[dict[str, Any]]) -> None:
    def built(folder: Path) -> list[dict[str, Any]]:
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
        return list(yaml.safe_load_all(done.stdout))

    base, gpu = built(BASE), built(GPU)
    for name in SERVERS:
        ours, theirs = (server_of(workloads(each)[name]) for each in (documents, base))
        assert theirs.pop("image") == "registry.example/gaitsdk-server:0.1.0" and ours.pop("image")
        for each in (ours, theirs):
            each["volumeMounts"] = sorted(each["volumeMounts"], key=lambda mount: str(mount["mountPath"]))
        assert ours == theirs
        patched = server_of(workloads(gpu)[name])
        assert serve_options(patched["args"])["rendering"] == "tensorrt"
        assert patched["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {each["metadata"].get("namespace", "gaitsdk") for each in base} == {"gaitsdk"}
    assert len(base) == len(documents) + 1, "and nginx.conf as a ConfigMap"
    assert built(MONITORING)
