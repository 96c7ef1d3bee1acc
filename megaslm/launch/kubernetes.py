"""Kubernetes Jobs, made of the manifests in launcher/k8s: a training, or one part per node.

Manifests are data: they are read from a file, some fields are set, and they are written for `kubectl`. No value is
inserted into text, so that none can become a key, a line or another object.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megaslm.config.cluster import KubernetesCluster
from megaslm.errors import ConfigError
from megaslm.launch.command import Command, VerbCall, script

Key = str | int
Field = str | int | list["Field"] | dict[str, "Field"]
"""The value of a field."""
RENDEZVOUS_PORT = 29400
_POD = ("spec", "template", "spec")
_CONTAINER = (*_POD, "containers", 0)


class KubernetesObject:
    """One object of a file. Fields can be replaced and removed, but not added: the file shows all of them."""

    def __init__(self, file: Path, content: Any) -> None:
        self._file = file
        self._content = content

    @property
    def kind(self) -> str:
        """Its kind, such as Job."""
        return str(self._content["kind"])

    def set(self, value: Field, *path: Key) -> None:
        """Replaces the field at the keys `path`. Raises ConfigError where the file has no such field."""
        self._holder(path)[path[-1]] = value

    def remove(self, *path: Key) -> None:
        """Removes the field at the keys `path`. Raises ConfigError where the file has no such field."""
        del self._holder(path)[path[-1]]

    def content(self) -> Any:
        """The whole object as plain values."""
        return self._content

    def _holder(self, path: Sequence[Key]) -> Any:
        holder, field = None, self._content
        for key in path:
            holder = field
            try:
                field = holder[key]
            except (KeyError, IndexError, TypeError):
                name = ".".join(map(str, path))
                raise ConfigError(
                    f"{self._file}: the {self.kind} has no field {name}, which `megaslm launch` sets; put it back"
                ) from None
        return holder


def read_manifests(file: Path) -> list[KubernetesObject]:
    """The objects of a file. Raises ConfigError where the file is not YAML, or holds something else."""
    try:
        contents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not all(isinstance(content, dict) and "kind" in content for content in contents):
        raise ConfigError(f"{file}: must hold Kubernetes objects, each with its kind")
    return [KubernetesObject(file, content) for content in contents]


def to_yaml(manifests: Sequence[KubernetesObject]) -> str:
    """The objects as YAML, one document each."""
    contents = [manifest.content() for manifest in manifests]
    return yaml.dump_all(contents, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=2**31 - 1)


class _Dumper(yaml.SafeDumper):
    """Quotes text that is not a plain word, because YAML readers disagree on `y`, `0o17` and `1e3`."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = None if re.fullmatch(r"[A-Za-z/][A-Za-z0-9/._-]+", value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def kubernetes_command(cluster: KubernetesCluster, work: VerbCall) -> Command:
    """The command that submits the Job and its further objects to Kubernetes.

    Raises ConfigError where a file of launcher/k8s lacks an object, or an object lacks a field that must be set.
    """
    manifests = _training(cluster, work) if work.verb == "train" else _parts(cluster, work)
    return Command(("kubectl", "create", "-f", "-"), standard_input=to_yaml(manifests), is_submission=True)


def _training(cluster: KubernetesCluster, work: VerbCall) -> list[KubernetesObject]:
    name = job_name(cluster, work)
    service, job = _read("train.yaml", "Service", "Job")
    service.set(name, "metadata", "name")
    service.set(cluster.namespace, "metadata", "namespace")
    service.set(name, "spec", "selector", "batch.kubernetes.io/job-name")
    _set_job(job, cluster, name, pods=cluster.nodes, has_gpus=True)
    # The pods' host names are resolved under the name of the Service.
    job.set(name, *_POD, "subdomain")
    settings = {
        "NODES": str(cluster.nodes),
        "RANKS_PER_NODE": str(cluster.ranks_on_each_node),
        "RENDEZVOUS": f"{name}-0.{name}:{RENDEZVOUS_PORT}",
        **({"MAX_RESTARTS": "0"} if work.is_smoke_test else {}),
        **_threads(cluster),
    }
    _set_program(
        job,
        cluster,
        (f"{cluster.project}/launcher/torchrun.sh", *work.going_on().words),
        settings,
    )
    return [service, job]


def _parts(cluster: KubernetesCluster, work: VerbCall) -> list[KubernetesObject]:
    (job,) = _read("parts.yaml", "Job")
    pods = cluster.nodes if work.can_be_shared else 1
    _set_job(job, cluster, job_name(cluster, work), pods=pods, has_gpus=work.is_for_ranks)
    settings = {"RANKS": str(cluster.ranks_on_each_node), **_threads(cluster)} if work.is_for_ranks else {}
    part = (f"{cluster.project}/launcher/k8s/part.sh", str(pods))
    words = part if work.can_be_shared else ("python", "-m", "megaslm")
    _set_program(job, cluster, (*words, *work.words), settings)
    return [job]


def job_name(cluster: KubernetesCluster, work: VerbCall) -> str:
    """The name of the Job."""
    return f"{cluster.name}-{work.verb}" + ("-finish" if work.is_finish else "")


def _read(file: str, *kinds: str) -> list[KubernetesObject]:
    path = Path(script(f"k8s/{file}"))
    manifests = {manifest.kind: manifest for manifest in read_manifests(path)}
    if set(manifests) != set(kinds):
        raise ConfigError(
            f"{path}: holds {', '.join(manifests) or 'nothing'}; must hold one each of {', '.join(kinds)}"
        )
    return [manifests[kind] for kind in kinds]


def _set_job(job: KubernetesObject, cluster: KubernetesCluster, name: str, *, pods: int, has_gpus: bool) -> None:
    memory = f"{cluster.memory_gib_per_node}Gi"
    job.set(name, "metadata", "name")
    job.set(cluster.namespace, "metadata", "namespace")
    job.set(pods, "spec", "completions")
    job.set(pods, "spec", "parallelism")
    job.set(cluster.volume_claim, *_POD, "volumes", 0, "persistentVolumeClaim", "claimName")
    job.set(cluster.image, *_CONTAINER, "image")
    job.set(cluster.project, *_CONTAINER, "workingDir")
    job.set(cluster.mount_path, *_CONTAINER, "volumeMounts", 0, "mountPath")
    job.set(str(cluster.cpus_per_node), *_CONTAINER, "resources", "requests", "cpu")
    job.set(memory, *_CONTAINER, "resources", "requests", "memory")
    job.set(memory, *_CONTAINER, "resources", "limits", "memory")
    if has_gpus and cluster.gpus_per_node is not None:
        job.set(cluster.gpus_per_node, *_CONTAINER, "resources", "limits", "nvidia.com/gpu")
    else:
        job.remove(*_CONTAINER, "resources", "limits", "nvidia.com/gpu")


def _set_program(
    job: KubernetesObject,
    cluster: KubernetesCluster,
    words: Iterable[str],
    settings: Mapping[str, str],
) -> None:
    variables = {**settings, **cluster.environment}
    environment: list[Field] = [{"name": name, "value": _literal(value)} for name, value in variables.items()]
    secrets: list[Field] = [{"secretRef": {"name": cluster.secret_name}}] if cluster.secret_name is not None else []
    job.set([_literal(word) for word in words], *_CONTAINER, "command")
    job.set(environment, *_CONTAINER, "env")
    job.set(secrets, *_CONTAINER, "envFrom")


def _threads(cluster: KubernetesCluster) -> dict[str, str]:
    """Sets the threads per rank. Without GPUs the ranks share the cores, and a pod sees all cores of its node."""
    if cluster.gpus_per_node is not None:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cluster.cpus_per_node // cluster.ranks_on_each_node))}


def _literal(text: str) -> str:
    """Escapes dollars: in commands and values, Kubernetes replaces `$(NAME)` by a variable and `$$` by one dollar."""
    return text.replace("$", "$$")
