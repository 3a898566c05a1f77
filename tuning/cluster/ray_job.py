"""Check a RayJob manifest, with which KubeRay starts a cluster for one sweep.

The fields are those of ``ray.io/v1`` in KubeRay 1.6 that a sweep has a use for, as classes below. What stands in a
pod beside its containers and volumes is for Kubernetes to check: ``kubectl apply --dry-run=server`` knows its whole
schema.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from core.text.redaction import secrets_in
from tuning.cluster.problems import is_secret_name, nearest, problem
from tuning.cluster.reading import read_mapping

SHIPPED = "clusters/rayjob.yaml"
_RUNNER = "unlearn-tune"
_GPU = "nvidia.com/gpu"
_SPOT = re.compile(r"spot|preemptible", re.IGNORECASE)
_OPEN_SERVICES = ("LoadBalancer", "NodePort", "ExternalName")
_TAG = re.compile(r"^[^\s@]+?(?::([\w][\w.-]*))?(@sha256:[0-9a-f]{64})?$")
_Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
_Count = Annotated[int, Field(ge=0, strict=True)]


class _Fields(BaseModel):
    """Fields of a resource: their names as Kubernetes writes them, no others, no conversions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, arbitrary_types_allowed=True
    )


class _SecretKey(_Fields):
    name: str
    key: str
    optional: bool | None = None


class _ValueFrom(_Fields):
    secret_key_ref: _SecretKey | None = None
    config_map_key_ref: dict[str, Any] | None = None
    field_ref: dict[str, Any] | None = None
    resource_field_ref: dict[str, Any] | None = None


class _Variable(_Fields):
    name: str
    value: Annotated[str | None, Field(strict=True)] = None
    value_from: _ValueFrom | None = None


class _Resources(_Fields):
    limits: dict[str, str | int | float] = {}
    requests: dict[str, str | int | float] = {}
    claims: list[dict[str, Any]] = []


class _Mount(_Fields):
    name: str
    mount_path: str
    sub_path: str | None = None
    read_only: bool | None = None


class _Container(_Fields):
    name: _Name
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[_Variable] = []
    env_from: list[dict[str, Any]] = []
    resources: _Resources = _Resources()
    volume_mounts: list[_Mount] = []
    ports: list[dict[str, Any]] = []
    lifecycle: dict[str, Any] | None = None
    security_context: dict[str, Any] | None = None
    working_dir: str | None = None
    liveness_probe: dict[str, Any] | None = None
    readiness_probe: dict[str, Any] | None = None


class _Volume(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)  # a kind of volume for each storage
    name: _Name


class _Pod(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, alias_generator=to_camel)
    containers: Annotated[list[_Container], Field(min_length=1)]
    init_containers: list[_Container] = []
    volumes: list[_Volume] = []
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    host_network: bool = False


class _Template(_Fields):
    metadata: dict[str, Any] = {}
    spec: _Pod


class _Head(_Fields):
    service_type: str | None = None
    head_service: dict[str, Any] | None = None
    enable_ingress: bool | None = None
    labels: dict[str, str] | None = None
    resources: dict[str, str] | None = None
    ray_start_params: dict[str, Annotated[str, Field(strict=True)]] = {}
    template: _Template


class _Workers(_Fields):
    group_name: _Name
    replicas: _Count = 0
    min_replicas: _Count = 0
    max_replicas: _Count
    num_of_hosts: Annotated[int, Field(ge=1, strict=True)] = 1
    idle_timeout_seconds: _Count | None = None
    labels: dict[str, str] | None = None
    resources: dict[str, str] | None = None
    ray_start_params: dict[str, Annotated[str, Field(strict=True)]] = {}
    scale_strategy: dict[str, Any] | None = None
    suspend: bool | None = None
    template: _Template


class _AuthOptions(_Fields):
    mode: Literal["disabled", "token"] | None = None
    secret_name: str | None = None
    enable_k8s_token_auth: Annotated[bool | None, Field(alias="enableK8sTokenAuth")] = None


class _Autoscaler(_Fields):
    version: Literal["v1", "v2"] | None = None
    resources: _Resources | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    env: list[_Variable] = []
    env_from: list[dict[str, Any]] = []
    volume_mounts: list[_Mount] = []
    security_context: dict[str, Any] | None = None
    idle_timeout_seconds: _Count | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None


class _Cluster(_Fields):
    ray_version: str | None = None
    auth_options: _AuthOptions | None = None
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: _Autoscaler | None = None
    gcs_fault_tolerance_options: dict[str, Any] | None = None
    network_policy: dict[str, Any] | None = None
    head_service_annotations: dict[str, str] | None = None
    managed_by: str | None = None
    suspend: bool | None = None
    upgrade_strategy: dict[str, Any] | None = None
    head_group_spec: _Head
    worker_group_specs: Annotated[list[_Workers], Field(min_length=1)]


class _Submitter(_Fields):
    backoff_limit: _Count | None = None


class _Job(_Fields):
    entrypoint: str
    active_deadline_seconds: Annotated[int, Field(ge=1, strict=True)] | None = None
    pre_running_deadline_seconds: _Count | None = None
    backoff_limit: _Count = 0
    ray_cluster_spec: _Cluster
    submitter_pod_template: _Template | None = None
    submitter_config: _Submitter | None = None
    metadata: dict[str, str] | None = None
    managed_by: str | None = None
    deletion_strategy: dict[str, Any] | None = None
    runtime_env_yaml: Annotated[str | None, Field(alias="runtimeEnvYAML")] = None
    job_id: str | None = None
    submission_mode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"] = (
        "K8sJobMode"
    )
    entrypoint_resources: str | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    ttl_seconds_after_finished: _Count = 0
    shutdown_after_job_finishes: bool = False
    suspend: bool = False


class _Metadata(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    name: _Name


class RayJob(_Fields):
    """A RayJob, as far as a sweep has a use for it."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: _Metadata
    spec: _Job


def manifest_problems(path: Path) -> list[str]:
    """Every problem of a manifest; empty if there is none.

    Args:
        path: A YAML file with one RayJob.
    """
    values, problems = read_mapping(path, model=SHIPPED)
    if values is None:
        return problems
    try:
        job = RayJob.model_validate(values)
    except ValidationError as err:
        return [*problems, *_field_problems(err), *_secret_problems(values)]
    return [
        *problems,
        *_job_problems(job.spec),
        *_head_problems(job.spec.ray_cluster_spec.head_group_spec),
        *_workers_problems(job.spec.ray_cluster_spec),
        *_image_problems(job.spec),
        *_token_problems(job.spec),
        *_pod_problems(job.spec),
        *_folder_problems(job.spec),
        *_secret_problems(values),
    ]


def _field_problems(err: ValidationError) -> Iterator[str]:
    for found in err.errors(include_url=False):
        key = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            todo = nearest(str(found["loc"][-1]), _siblings(found["loc"]))
            yield problem(key, "must be a field of ray.io/v1", str(found["loc"][-1]), todo)
        elif found["type"] == "missing":
            yield problem(key, "must be given", None, "add it")
        else:
            rule = found["msg"][0].lower() + found["msg"][1:]
            yield problem(key, f"must fit ray.io/v1: {rule}", found["input"], "correct it")


def _siblings(place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields where an unknown one stands."""
    model: Any = RayJob
    for part in place[:-1]:
        if isinstance(part, int):
            continue
        by_alias = {field.alias: field for field in model.model_fields.values()}
        inner = _model_in(by_alias[str(part)].annotation) if str(part) in by_alias else None
        if inner is None:
            return []
        model = inner
    return [str(field.alias) for field in model.model_fields.values()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of fields that an annotation holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)


def _job_problems(job: _Job) -> Iterator[str]:
    """The job is tried again when its head is lost, goes on then, and leaves no cluster behind."""
    if job.backoff_limit < 1:
        rule = "a job that loses its head must be tried again"
        yield problem("spec.backoffLimit", rule, job.backoff_limit, "write 10")
    if not job.shutdown_after_job_finishes:
        rule = "a cluster whose sweep has ended must go"
        yield problem("spec.shutdownAfterJobFinishes", rule, False, "write `true`")
    if job.submission_mode == "InteractiveMode":
        rule = "must be a mode in which KubeRay submits the job itself"
        yield problem("spec.submissionMode", rule, job.submission_mode, "write K8sJobMode")
    for verb in ("sweep", "resume"):
        if not re.search(rf"\b{_RUNNER}\s+{verb}\b", job.entrypoint):
            rule = "the first try must begin the sweep, and every later one go on with it"
            yield problem("spec.entrypoint", rule, f"no {_RUNNER} {verb}", f"start from {SHIPPED}")
    if not re.search(r"--address\b", job.entrypoint):
        rule = "must run on the cluster, or it starts a Ray of its own on the head"
        yield problem("spec.entrypoint", rule, "no --address", "write --address auto")
    installed = metadata.version("ray")
    version = job.ray_cluster_spec.ray_version
    if version != installed:
        rule = f"must be the ray of the lock, {installed}"
        yield problem("spec.rayClusterSpec.rayVersion", rule, version, f"write '{installed}'")


def _head_problems(head: _Head) -> Iterator[str]:
    """A head without trials that nobody outside reaches and that the provider does not take away."""
    at = "spec.rayClusterSpec.headGroupSpec"
    for kind in ("num-cpus", "num-gpus"):
        given = head.ray_start_params.get(kind)
        if given != "0":
            rule = "the head must run no trials"
            yield problem(f"{at}.rayStartParams.{kind}", rule, given, 'write "0"')
    if any(container.resources.limits.get(_GPU) for container in head.template.spec.containers):
        yield problem(f"{at}.template", f"must ask for no {_GPU}", "one", "remove it")
    if head.service_type in _OPEN_SERVICES:
        rule = "the dashboard runs any code it is sent and must not leave the cluster"
        yield problem(f"{at}.serviceType", rule, head.service_type, "write ClusterIP")
    service = (head.head_service or {}).get("spec")
    opened = service.get("type") if isinstance(service, dict) else None
    if opened in _OPEN_SERVICES:
        rule = "the dashboard must not leave the cluster"
        yield problem(f"{at}.headService.spec.type", rule, opened, "write ClusterIP")
    if head.enable_ingress:
        rule = "the dashboard must not leave the cluster"
        yield problem(f"{at}.enableIngress", rule, True, "write `false`")
    for key, value in head.template.spec.node_selector.items():
        if _SPOT.search(f"{key}={value}") and value.lower() != "false":
            rule = "the head holds the study and must be on demand"
            yield problem(f"{at}.template.spec.nodeSelector.{key}", rule, value, "remove it")


def _workers_problems(cluster: _Cluster) -> Iterator[str]:
    names = [group.group_name for group in cluster.worker_group_specs]
    for i, group in enumerate(cluster.worker_group_specs):
        at = f"spec.rayClusterSpec.workerGroupSpecs[{i}]"
        if names.count(group.group_name) > 1 and names.index(group.group_name) < i:
            yield problem(f"{at}.groupName", "must be another one", group.group_name, "rename it")
        if not group.min_replicas <= group.replicas <= group.max_replicas:
            given = f"{group.min_replicas}, {group.replicas}, {group.max_replicas}"
            rule = "minReplicas <= replicas <= maxReplicas must hold"
            yield problem(f"{at}.replicas", rule, given, "correct them")
        if group.min_replicas < group.max_replicas and not cluster.enable_in_tree_autoscaling:
            rule, place = "must be true where workers come and go", "spec.rayClusterSpec"
            switch = cluster.enable_in_tree_autoscaling
            yield problem(f"{place}.enableInTreeAutoscaling", rule, switch, "write `true`")
        limits = group.template.spec.containers[0].resources.limits
        for kind in ("cpu", "memory"):
            if kind not in limits:
                rule = "must be given, as Ray takes from it what a worker has"
                place = f"{at}.template.spec.containers[0].resources.limits.{kind}"
                yield problem(place, rule, None, "add it")


def _pods(job: _Job) -> Iterator[tuple[str, _Pod]]:
    """The pods that Ray runs in, with their places."""
    cluster, at = job.ray_cluster_spec, "spec.rayClusterSpec"
    yield f"{at}.headGroupSpec.template.spec", cluster.head_group_spec.template.spec
    for i, group in enumerate(cluster.worker_group_specs):
        yield f"{at}.workerGroupSpecs[{i}].template.spec", group.template.spec


def _image_problems(job: _Job) -> Iterator[str]:
    images = {}
    for at, pod in _pods(job):
        image = images[at] = pod.containers[0].image
        found = _TAG.match(image)
        if found is None or (found.group(2) is None and found.group(1) in (None, "latest")):
            rule = "must be pinned by digest or by a tag that is not latest"
            place = f"{at}.containers[0].image"
            yield problem(place, rule, image, "write NAME:TAG or NAME@sha256:DIGEST")
    if len(set(images.values())) > 1:
        rule = "head and workers must run one image, so one version of all packages"
        yield problem("image", rule, " and ".join(sorted(set(images.values()))), "use one")


def _token_problems(job: _Job) -> Iterator[str]:
    """A token that a secret holds: by KubeRay's ``authOptions``, or by variables of every pod."""
    options = job.ray_cluster_spec.auth_options
    if options is not None:
        if options.mode != "token":
            rule = "must be token, as whoever reaches Ray's ports runs code"
            at = "spec.rayClusterSpec.authOptions.mode"
            yield problem(at, rule, options.mode, "write token")
        return
    for at, pod in _pods(job):
        variables = {variable.name: variable for variable in pod.containers[0].env}
        mode = variables.get("RAY_AUTH_MODE")
        if mode is None or mode.value != "token":
            rule = "Ray must run with token authentication"
            given = None if mode is None else mode.value
            todo = "write authOptions: {mode: token} in rayClusterSpec"
            yield problem(f"{at}.containers[0].env.RAY_AUTH_MODE", rule, given, todo)
        token = variables.get("RAY_AUTH_TOKEN")
        if token is None or token.value_from is None or token.value_from.secret_key_ref is None:
            rule = "must come from a secret"
            given = None if token is None else "something else"
            todo = "write valueFrom: {secretKeyRef: {name: ..., key: auth_token}}"
            yield problem(f"{at}.containers[0].env.RAY_AUTH_TOKEN", rule, given, todo)


def _pod_problems(job: _Job) -> Iterator[str]:
    for at, pod in _pods(job):
        if pod.host_network:
            rule = "must be false, or Ray's ports are the machine's"
            yield problem(f"{at}.hostNetwork", rule, True, "remove it")
        if (pod.containers[0].security_context or {}).get("privileged"):
            place = f"{at}.containers[0].securityContext.privileged"
            yield problem(
                place, "must be false, for trials need no rights of the machine", True, "remove it"
            )
        volumes = {volume.name for volume in pod.volumes}
        for mount in pod.containers[0].volume_mounts:
            if mount.name not in volumes:
                place = f"{at}.containers[0].volumeMounts"
                todo = nearest(mount.name, sorted(volumes))
                yield problem(place, "must be one of the pod's volumes", mount.name, todo)


def _folder_problems(job: _Job) -> Iterator[str]:
    """The run folder outlives the cluster: a claim that all pods mount at one path, or storage by URL."""
    if re.search(r"--storage\b", job.entrypoint):
        return
    claims = [_claims(pod) for _, pod in _pods(job)]
    if not claims[0]:
        rule = "must mount a persistentVolumeClaim, as the run folder goes with the pod otherwise"
        at = "spec.rayClusterSpec.headGroupSpec.template.spec.volumes"
        yield problem(at, rule, None, f"start from {SHIPPED}, or give --storage")
        return
    for (at, _), of_pod in zip(_pods(job), claims, strict=True):
        if not claims[0].items() <= of_pod.items():
            rule = (
                "must mount the head's claim at the head's path, as ranks write into the run folder"
            )
            shown = ", ".join(f"{path}: {claim}" for path, claim in of_pod.items()) or None
            yield problem(f"{at}.volumes", rule, shown, f"start from {SHIPPED}")


def _claims(pod: _Pod) -> dict[str, str]:
    """Path to name of each persistent claim that the first container mounts."""
    sources = {v.name: (v.model_extra or {}).get("persistentVolumeClaim") for v in pod.volumes}
    found = {}
    for mount in pod.containers[0].volume_mounts:
        claim = sources.get(mount.name)
        if isinstance(claim, dict):
            found[mount.mount_path] = str(claim.get("claimName"))
    return found


def _secret_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Secrets that the manifest itself holds; everybody who may read the resource reads them."""
    rule, todo = "must hold no secret", "use a Secret and secretKeyRef"
    for at, value in _texts(values, ""):
        for found in secrets_in(value):
            yield f"{at}: {rule}, got {found}, {todo}"


def _texts(value: Any, at: str) -> Iterator[tuple[str, str]]:
    """Every text with its place; the value of a variable with its name, as a shell would write it."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        name, given = value.get("name"), value.get("value")
        if isinstance(name, str) and isinstance(given, str) and is_secret_name(name) and given:
            yield at, f"{name}={given}"
            return
        for key, inner in value.items():
            yield from _texts(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, f"{at}[{i}]")
