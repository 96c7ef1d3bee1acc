"""Jobs of Kubernetes, made of the manifests in launcher/k8s: a training, or as many parts as there are nodes."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from megaslm.config.cluster import KubernetesCluster
from megaslm.errors import ConfigError
from megaslm.launch.command import Command, script
from megaslm.launch.manifest import Field, Manifest, read_manifests, to_yaml
from megaslm.launch.work import Work

RENDEZVOUS_PORT = 29400
_POD = ("spec", "template", "spec")
_CONTAINER = (*_POD, "containers", 0)


def kubernetes_command(cluster: KubernetesCluster, work: Work) -> Command:
    """The command that gives the Job, with what belongs to it, to Kubernetes.

    Raises:
        ConfigError: a file of launcher/k8s lacks an object, or one of them a field that has to be set.
    """
    manifests = _training(cluster, work) if work.verb == "train" else _parts(cluster, work)
    return Command(("kubectl", "create", "-f", "-"), standard_input=to_yaml(manifests))


def _training(cluster: KubernetesCluster, work: Work) -> list[Manifest]:
    name = _name(cluster, work)
    service, job = _read("train.yaml", "Service", "Job")
    service.set(name, "metadata", "name")
    service.set(cluster.namespace, "metadata", "namespace")
    service.set(name, "spec", "selector", "batch.kubernetes.io/job-name")
    _set_job(job, cluster, name, pods=cluster.nodes, has_gpus=True)
    # The pods' own names are found under that of the Service.
    job.set(name, *_POD, "subdomain")
    settings = {
        "NODES": str(cluster.nodes),
        "RANKS_PER_NODE": str(cluster.ranks_on_each_node),
        "RENDEZVOUS": f"{name}-0.{name}:{RENDEZVOUS_PORT}",
        **_threads(cluster),
    }
    _set_program(
        job,
        cluster,
        (f"{cluster.project}/launcher/torchrun.sh", *work.going_on().words),
        settings,
    )
    return [service, job]


def _parts(cluster: KubernetesCluster, work: Work) -> list[Manifest]:
    (job,) = _read("parts.yaml", "Job")
    pods = cluster.nodes if work.can_be_shared else 1
    _set_job(job, cluster, _name(cluster, work), pods=pods, has_gpus=work.is_for_ranks)
    settings = {"RANKS": str(cluster.ranks_on_each_node), **_threads(cluster)} if work.is_for_ranks else {}
    part = (f"{cluster.project}/launcher/k8s/part.sh", str(pods))
    words = part if work.can_be_shared else ("python", "-m", "megaslm")
    _set_program(job, cluster, (*words, *work.words), settings)
    return [job]


def _name(cluster: KubernetesCluster, work: Work) -> str:
    return f"{cluster.name}-{work.verb}" + ("-finish" if work.is_finish else "")


def _read(file: str, *kinds: str) -> list[Manifest]:
    path = Path(script(f"k8s/{file}"))
    manifests = {manifest.kind: manifest for manifest in read_manifests(path)}
    if set(manifests) != set(kinds):
        raise ConfigError(
            f"{path}: holds {', '.join(manifests) or 'nothing'}; must hold one each of {', '.join(kinds)}"
        )
    return [manifests[kind] for kind in kinds]


def _set_job(job: Manifest, cluster: KubernetesCluster, name: str, *, pods: int, has_gpus: bool) -> None:
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
    job: Manifest,
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
    """Without GPUs the ranks share out the cores, and a pod sees all those of its node, whatever its part of them."""
    if cluster.gpus_per_node is not None:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cluster.cpus_per_node // cluster.ranks_on_each_node))}


def _literal(text: str) -> str:
    """Kubernetes puts variables in place of `$(NAME)` in commands and values, and a dollar in place of two."""
    return text.replace("$", "$$")
