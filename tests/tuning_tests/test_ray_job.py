"""The shipped manifest is valid, and each mistake in it is found by its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command, is_refused

from tuning.cluster import validate_cluster_file

SHIPPED = Path(__file__).resolve().parents[2] / "clusters" / "rayjob.yaml"
SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def shipped() -> dict[str, Any]:
    loaded = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return copy.deepcopy(loaded)


def cluster(job: dict[str, Any]) -> dict[str, Any]:
    found = job["spec"]["rayClusterSpec"]
    assert isinstance(found, dict)
    return found


def head(job: dict[str, Any]) -> dict[str, Any]:
    found = cluster(job)["headGroupSpec"]
    assert isinstance(found, dict)
    return found


def workers(job: dict[str, Any]) -> dict[str, Any]:
    return cluster(job)["workerGroupSpecs"][0]  # type: ignore[no-any-return]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]  # type: ignore[no-any-return]


def container(group: dict[str, Any]) -> dict[str, Any]:
    return pod(group)["containers"][0]  # type: ignore[no-any-return]


def set_image(job: dict[str, Any], image: str) -> None:
    container(head(job))["image"] = container(workers(job))["image"] = image


MISTAKES: list[Any] = [
    pytest.param(
        lambda j: j.update(apiVersion="ray.io/v1alpha1"), ["apiVersion: ", "alpha1"], id="old-version"
    ),
    pytest.param(lambda j: j.update(kind="RayCluster"), ["kind: ", "RayCluster"], id="other-kind"),
    pytest.param(
        lambda j: j["metadata"].update(name="Unlearn_Tune"), ["metadata.name: "], id="bad-name"
    ),
    pytest.param(
        lambda j: j["spec"].update(entryPoint=j["spec"].pop("entrypoint")),
        ["spec.entryPoint: ", "did you mean entrypoint?"],
        id="misspelt-field",
    ),
    pytest.param(lambda j: j["spec"].pop("rayClusterSpec"), ["spec.rayClusterSpec: must be given"], id="no-cluster"),
    pytest.param(
        lambda j: head(j)["rayStartParams"].update({"num-cpus": 0}),
        ["headGroupSpec.rayStartParams.num-cpus: must fit", "got 0"],
        id="number-for-text",
    ),
    pytest.param(
        lambda j: j["spec"].update(entrypoint="unlearn-tune sweep a.yaml --address auto"),
        ["spec.entrypoint: ", "no unlearn-tune resume"],
        id="never-goes-on",
    ),
    pytest.param(
        lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("--address auto", "")),
        ["spec.entrypoint: ", "no --address"],
        id="ray-of-its-own",
    ),
    pytest.param(lambda j: j["spec"].pop("backoffLimit"), ["spec.backoffLimit: ", "got 0"], id="tried-once"),
    pytest.param(
        lambda j: j["spec"].update(shutdownAfterJobFinishes=False),
        ["spec.shutdownAfterJobFinishes: ", "must go"],
        id="cluster-stays",
    ),
    pytest.param(
        lambda j: j["spec"].update(submissionMode="InteractiveMode"),
        ["spec.submissionMode: ", "InteractiveMode"],
        id="nobody-submits",
    ),
    pytest.param(
        lambda j: cluster(j).update(rayVersion="2.9.0"), ["rayVersion: ", "got 2.9.0"], id="other-ray"
    ),
    pytest.param(
        lambda j: head(j)["rayStartParams"].pop("num-cpus"),
        ["headGroupSpec.rayStartParams.num-cpus: the head must run no trials"],
        id="trials-on-head",
    ),
    pytest.param(
        lambda j: container(head(j))["resources"]["limits"].update({"nvidia.com/gpu": 1}),
        ["headGroupSpec.template: must ask for no nvidia.com/gpu"],
        id="gpu-of-head",
    ),
    pytest.param(
        lambda j: head(j).update(serviceType="LoadBalancer"),
        ["headGroupSpec.serviceType: ", "LoadBalancer"],
        id="open-dashboard",
    ),
    pytest.param(
        lambda j: head(j).update(headService={"spec": {"type": "NodePort"}}),
        ["headGroupSpec.headService.spec.type: ", "NodePort"],
        id="dashboard-on-nodes",
    ),
    pytest.param(
        lambda j: head(j).update(enableIngress=True), ["headGroupSpec.enableIngress: "], id="ingress"
    ),
    pytest.param(
        lambda j: pod(head(j)).update(nodeSelector={"cloud.google.com/gke-spot": "true"}),
        ["nodeSelector.cloud.google.com/gke-spot: ", "on demand"],
        id="spot-head",
    ),
    pytest.param(lambda j: set_image(j, "unlearn-tune:latest"), ["image: ", "got unlearn-tune:latest"], id="latest"),
    pytest.param(lambda j: set_image(j, "unlearn-tune"), ["image: ", "pinned by digest"], id="no-tag"),
    pytest.param(
        lambda j: container(workers(j)).update(image="r.example.com/unlearn-tune:0.2.0"),
        ["image: head and workers must run one image"],
        id="two-images",
    ),
    pytest.param(
        lambda j: cluster(j)["authOptions"].update(mode="disabled"), ["authOptions.mode: ", "disabled"], id="token-off"
    ),
    pytest.param(
        lambda j: cluster(j).pop("authOptions"),
        ["headGroupSpec.template.spec.containers[0].env.RAY_AUTH_TOKEN: must come from a secret"],
        id="no-token",
    ),
    pytest.param(
        lambda j: container(head(j))["env"].append({"name": "HF_TOKEN", "value": SECRET}),
        ["env[1]: must hold no secret", "HF_TOKEN=***"],
        id="secret-in-variable",
    ),
    pytest.param(
        lambda j: j["spec"].update(runtimeEnvYAML=f"env_vars: {{A: 'WANDB_API_KEY={SECRET}'}}"),
        ["spec.runtimeEnvYAML: must hold no secret"],
        id="secret-in-environment",
    ),
    pytest.param(
        lambda j: workers(j).update(replicas=9), ["workerGroupSpecs[0].replicas: ", "0, 9, 4"], id="too-many"
    ),
    pytest.param(
        lambda j: cluster(j).pop("enableInTreeAutoscaling"), ["enableInTreeAutoscaling: "], id="never-grows"
    ),
    pytest.param(
        lambda j: cluster(j)["workerGroupSpecs"].append(copy.deepcopy(workers(j))),
        ["workerGroupSpecs[1].groupName: must be another one"],
        id="same-name-twice",
    ),
    pytest.param(
        lambda j: container(workers(j))["resources"]["limits"].pop("memory"),
        ["workerGroupSpecs[0]", "limits.memory: must be given"],
        id="unlimited-memory",
    ),
    pytest.param(
        lambda j: pod(workers(j)).update(hostNetwork=True), ["hostNetwork: must be false"], id="ports-of-machine"
    ),
    pytest.param(
        lambda j: container(workers(j)).update(securityContext={"privileged": True}),
        ["securityContext.privileged: must be false"],
        id="privileged",
    ),
    pytest.param(
        lambda j: container(workers(j))["volumeMounts"][0].update(name="wrk"),
        ["volumeMounts: ", "did you mean work?"],
        id="unknown-volume",
    ),
    pytest.param(
        lambda j: pod(workers(j)).update(volumes=[{"name": "work", "emptyDir": {}}]),
        ["workerGroupSpecs[0].template.spec.volumes: must mount the head's claim"],
        id="workers-see-no-run-folder",
    ),
    pytest.param(
        lambda j: [pod(g).update(volumes=[{"name": "work", "emptyDir": {}}]) for g in (head(j), workers(j))],
        ["headGroupSpec.template.spec.volumes: must mount a persistentVolumeClaim"],
        id="run-folder-goes-with-the-pod",
    ),
]  # fmt: skip


def test_the_shipped_manifest_is_valid() -> None:
    assert validate_cluster_file(SHIPPED, yaml.safe_load(SHIPPED.read_text("utf-8"))) == []


@pytest.mark.parametrize(("change", "said"), MISTAKES)
def test_a_mistake_is_found(
    shipped: dict[str, Any], tmp_path: Path, change: Change, said: list[str]
) -> None:
    change(shipped)
    path = tmp_path / "rayjob.yaml"
    path.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    problems = validate_cluster_file(path, shipped)
    assert any(all(part in problem for part in said) for problem in problems), problems
    assert SECRET not in str(problems)


def test_every_mistake_is_named_at_once(
    tune: Command, shipped: dict[str, Any], tmp_path: Path
) -> None:
    head(shipped)["serviceType"] = "LoadBalancer"
    del shipped["spec"]["backoffLimit"]
    path = tmp_path / "rayjob.yaml"
    path.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    is_refused(tune("validate", path), "2 problems", "spec.backoffLimit: ", "serviceType: ")


def test_a_run_folder_on_storage_needs_no_claim(shipped: dict[str, Any], tmp_path: Path) -> None:
    for group in (head(shipped), workers(shipped)):
        pod(group)["volumes"] = [{"name": "work", "emptyDir": {}}]
    command = shipped["spec"]["entrypoint"]
    shipped["spec"]["entrypoint"] = command.replace("--address", "--storage s3://b/runs --address")
    path = tmp_path / "rayjob.yaml"
    path.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    assert validate_cluster_file(path, shipped) == []
