"""What a cluster's file may say, and that nothing else gets through."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as some
from pydantic import ValidationError

from megaslm.config.cluster import HostfileCluster, KubernetesCluster, SlurmCluster, TorchrunCluster
from megaslm.config.section import Section
from megaslm.errors import ConfigError
from megaslm.launch.start import load_cluster
from tests.launched import ROOT
from tests.messages import Says

KUBERNETES = (
    "kind: kubernetes\ngpus_per_node: 8\nimage: r/i\nvolume_claim: data\ncpus_per_node: 8\nmemory_gib_per_node: 64"
)
EXAMPLES = sorted((ROOT / "launcher").glob("*.yaml"))


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def complaint(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    return str(caught.value)


def test_there_is_an_example_of_each_kind_and_it_is_valid() -> None:
    assert {load_cluster(path).kind for path in EXAMPLES} == {"local", "hostfile", "torchrun", "slurm", "kubernetes"}
    assert all(load_cluster(path).kind == path.stem for path in EXAMPLES)


def test_the_kind_decides_what_may_be_said(cluster_file: Path, says: Says) -> None:
    says(complaint(cluster_file, "ranks: 2"), "kind = null")
    says(complaint(cluster_file, "kind: sge"), "kind = sge")
    says(complaint(cluster_file, "kind: [local]"), "kind = [local]")
    says(complaint(cluster_file, "kind: local\nnodes: 2"), "nodes = 2")
    says(complaint(cluster_file, "kind: hostfile"), "hostfile: ")


HOSTFILE: dict[str, Any] = {"kind": "hostfile", "hostfile": "hosts.txt"}
TORCHRUN: dict[str, Any] = {"kind": "torchrun", "nodes": 2}
SLURM: dict[str, Any] = {"kind": "slurm", "gpus_per_node": 8}
NAMES = [
    (HostfileCluster, "master_addr", HOSTFILE),
    (TorchrunCluster, "rendezvous", TORCHRUN),
    (SlurmCluster, "partition", SLURM),
    (SlurmCluster, "account", SLURM),
    (SlurmCluster, "time", SLURM),
    (KubernetesCluster, "name", yaml.safe_load(KUBERNETES)),
    (KubernetesCluster, "namespace", yaml.safe_load(KUBERNETES)),
    (KubernetesCluster, "secret_name", yaml.safe_load(KUBERNETES)),
    (KubernetesCluster, "image", yaml.safe_load(KUBERNETES)),
]
SOUND = "abz09AZ.:,@/_-"
MARKS = " ;&|<>$`\\'\"(){}[]*?!~#%=+^\n\t\0\x1b"
ANY_TEXT = some.text(some.one_of(some.sampled_from(SOUND + MARKS), some.characters()))


def refused_in(section: type[Section], settings: dict[str, Any]) -> list[object]:
    """The keys that a section complains of."""
    try:
        section.model_validate(settings)
    except ValidationError as refused:
        return [error["loc"][0] for error in refused.errors()]
    return []


@pytest.mark.parametrize(("section", "key", "rest"), NAMES, ids=[key for _, key, _ in NAMES])
@example("a;reboot")
@example("$(id)")
@example("-oProxyCommand=x")
@example("--help")
@example("a\nb")
@example("a\n")
@example("٣")
@example("")
@given(value=ANY_TEXT)
def test_no_name_says_anything_to_a_shell(section: type[Section], key: str, rest: dict[str, Any], value: str) -> None:
    """Whatever is taken is one word of letters, digits and harmless marks that no program reads as an option."""
    if refused := refused_in(section, {**rest, key: value}):
        assert refused == [key]
    else:
        assert value
        assert value[0] != "-"
        assert value.isascii()
        assert all(character.isalnum() or character in SOUND for character in value)


@given(value=ANY_TEXT)
def test_a_path_in_a_container_is_whole_and_on_one_line(value: str) -> None:
    """Spaces and quotes are harmless inside: no shell reads it."""
    if refused := refused_in(KubernetesCluster, {**yaml.safe_load(KUBERNETES), "project": value}):
        assert refused == ["project"]
    else:
        assert value.startswith("/")
        assert not set(value) & set(":\0\n")


@pytest.mark.parametrize(
    ("key", "rest"),
    [
        ("master_addr", "kind: hostfile\nhostfile: hosts.txt"),
        ("rendezvous", "kind: torchrun\nnodes: 2"),
        ("partition", "kind: slurm\ngpus_per_node: 8"),
        ("time", "kind: slurm\ngpus_per_node: 8"),
        ("name", KUBERNETES),
        ("namespace", KUBERNETES),
        ("project", KUBERNETES),
    ],
)
def test_a_hostile_name_is_refused_by_its_key(cluster_file: Path, key: str, rest: str, says: Says) -> None:
    says(complaint(cluster_file, f"{rest}\n{key}: a;reboot"), f"{key} = a;reboot")


@pytest.mark.parametrize("address", ["node-1.example", "10.0.0.1", "fd77::1", "::ffff:10.0.0.1"])
def test_the_hosts_of_a_hostfile_meet_at_an_address_or_a_name(cluster_file: Path, address: str) -> None:
    cluster_file.write_text(f'kind: hostfile\nhostfile: hosts.txt\nmaster_addr: "{address}"', encoding="utf-8")
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, HostfileCluster)
    assert cluster.master_addr == address


@pytest.mark.parametrize("address", ["node-1:29500", "fd77::g", "fe80::1%eth0", "node-1."])
def test_an_address_has_no_port_and_no_zone(cluster_file: Path, address: str) -> None:
    text = complaint(cluster_file, f'kind: hostfile\nhostfile: hosts.txt\nmaster_addr: "{address}"')
    assert f"master_addr = {address}: " in text


@pytest.mark.parametrize(
    "value", ["a;reboot:29400", "-oProxyCommand=x:1", "$(id):29400", "node-1", "node-1:0", "a b:1"]
)
def test_a_meeting_point_is_a_host_and_a_port(cluster_file: Path, value: str) -> None:
    text = complaint(cluster_file, f'kind: torchrun\nnodes: 2\nrendezvous: "{value}"')
    assert f"rendezvous = {value}: " in text


def test_several_hosts_meet_somewhere_and_one_nowhere(cluster_file: Path, says: Says) -> None:
    says(complaint(cluster_file, "kind: torchrun\nnodes: 2"), "rendezvous = null")
    says(complaint(cluster_file, "kind: torchrun\nrendezvous: a:1"), "rendezvous = a:1")
    cluster_file.write_text("kind: torchrun\nnodes: 2\nrendezvous: node-1.example:29400", encoding="utf-8")
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, TorchrunCluster)
    assert cluster.rendezvous == "node-1.example:29400"


@pytest.mark.parametrize("name", ["A;B", "$(id)", "A B", "1A", "A=B", "''", "-A"])
def test_a_variable_has_a_sound_name(cluster_file: Path, name: str) -> None:
    text = complaint(cluster_file, f"kind: local\nenvironment: {{{name}: x}}")
    assert f"environment.{name.strip(chr(39))}: " in text


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MEGASLM_JOB", "MEGASLM_HOSTS"])
def test_the_launchers_own_variables_are_not_set_beside_them(cluster_file: Path, name: str, says: Says) -> None:
    says(complaint(cluster_file, f"kind: local\nenvironment: {{{name}: node-1}}"), f"environment.{name}")


def test_what_an_environment_may_hold(cluster_file: Path, says: Says) -> None:
    says(complaint(cluster_file, "kind: local\nenvironment: {A;B: x}"), "environment.A;B")
    says(complaint(cluster_file, "kind: local\nenvironment: {OMP_NUM_THREADS: 4}"), "environment.OMP_NUM_THREADS = 4")
    text = complaint(cluster_file, "kind: local\nenvironment: {HF_TOKEN: hunter2}")
    says(text, "environment.HF_TOKEN")
    assert "hunter2" not in text
    says(complaint(cluster_file, 'kind: local\nenvironment: {A: "a\\0b"}'), "environment.A")


def test_what_a_hostfile_cannot_carry_is_refused(cluster_file: Path, says: Says) -> None:
    text = complaint(cluster_file, 'kind: hostfile\nhostfile: hosts.txt\nenvironment: {A: "a\\nb"}')
    says(text, "environment.A")
    text = complaint(cluster_file, 'kind: hostfile\nhostfile: hosts.txt\nenvironment: {CUDA_VISIBLE_DEVICES: "4,5"}')
    says(text, "environment.CUDA_VISIBLE_DEVICES")


def test_a_node_has_gpus_or_ranks(cluster_file: Path, says: Says) -> None:
    says(complaint(cluster_file, "kind: slurm"), "gpus_per_node", "ranks_per_node")
    says(complaint(cluster_file, "kind: slurm\ngpus_per_node: 1\nranks_per_node: 1"), "gpus_per_node", "ranks_per_node")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("{nodes: 3}", "options.nodes"),
        ("{wrap: reboot}", "options.wrap"),
        ("{'qos=a --wrap': b}", "options.qos=a --wrap"),
        ("{-w: node-1}", "options.-w"),
        ('{comment: "a\\nb"}', "options.comment"),
        ("{exclusive: false}", "options.exclusive = false"),
    ],
)
def test_options_of_slurm_are_options(cluster_file: Path, option: str, named: str, says: Says) -> None:
    says(complaint(cluster_file, f"kind: slurm\ngpus_per_node: 8\noptions: {option}"), named)


@pytest.mark.parametrize("time", ["90", "30:00", "12:00:00", "2-0", "2-00:00", "2-00:00:00"])
def test_times_are_as_sbatch_takes_them(cluster_file: Path, time: str) -> None:
    cluster_file.write_text(f'kind: slurm\nranks_per_node: 1\ntime: "{time}"', encoding="utf-8")
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, SlurmCluster)
    assert cluster.time == time


def test_an_image_is_an_image(cluster_file: Path, says: Says) -> None:
    says(complaint(cluster_file, KUBERNETES.replace("image: r/i", "image: a;b")), "image = a;b")
