"""What a cluster's file may say, and that nothing else gets through."""

from pathlib import Path

import pytest

from megaslm.config.cluster import HostfileCluster, SlurmCluster, TorchrunCluster
from megaslm.errors import ConfigError
from megaslm.launch.cluster_file import load_cluster
from tests.launched import ROOT

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


def test_the_kind_decides_what_may_be_said(cluster_file: Path) -> None:
    assert "kind = null: must be one of local, hostfile, torchrun, slurm, kubernetes" in complaint(
        cluster_file, "ranks: 2"
    )
    assert "kind = sge: must be one of" in complaint(cluster_file, "kind: sge")
    assert "kind = [local]: must be one of" in complaint(cluster_file, "kind: [local]")
    assert "nodes = 2: unknown key" in complaint(cluster_file, "kind: local\nnodes: 2")
    assert "hostfile: not set" in complaint(cluster_file, "kind: hostfile")


HOSTILE = ["a;reboot", "$(id)", "-oProxyCommand=x", "a b", "a\\nb", "`id`", "a'b", "--help", ""]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    ("key", "rest"),
    [
        ("master_addr", "kind: hostfile\nhostfile: hosts.txt"),
        ("rendezvous", "kind: torchrun\nnodes: 2"),
        ("partition", "kind: slurm\ngpus_per_node: 8"),
        ("account", "kind: slurm\ngpus_per_node: 8"),
        ("time", "kind: slurm\ngpus_per_node: 8"),
        ("name", KUBERNETES),
        ("namespace", KUBERNETES),
        ("secret_name", KUBERNETES),
        ("project", KUBERNETES),
    ],
)
def test_a_hostile_name_is_refused_by_its_key(cluster_file: Path, key: str, rest: str, value: str) -> None:
    # Inside a path in a container spaces and quotes are harmless: no shell reads it.
    assert f"{key} = " in complaint(cluster_file, f'{rest}\n{key}: "{value}"')


@pytest.mark.parametrize("address", ["node-1.example", "10.0.0.1", "fd77::1", "::ffff:10.0.0.1"])
def test_the_hosts_of_a_hostfile_meet_at_an_address_or_a_name(cluster_file: Path, address: str) -> None:
    cluster_file.write_text(f'kind: hostfile\nhostfile: hosts.txt\nmaster_addr: "{address}"', encoding="utf-8")
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, HostfileCluster)
    assert cluster.master_addr == address


@pytest.mark.parametrize("address", ["node-1:29500", "fd77::g", "fe80::1%eth0", "node-1."])
def test_an_address_has_no_port_and_no_zone(cluster_file: Path, address: str) -> None:
    text = complaint(cluster_file, f'kind: hostfile\nhostfile: hosts.txt\nmaster_addr: "{address}"')
    assert f"master_addr = {address}: must be a host's name" in text


@pytest.mark.parametrize(
    "value", ["a;reboot:29400", "-oProxyCommand=x:1", "$(id):29400", "node-1", "node-1:0", "a b:1"]
)
def test_a_meeting_point_is_a_host_and_a_port(cluster_file: Path, value: str) -> None:
    text = complaint(cluster_file, f'kind: torchrun\nnodes: 2\nrendezvous: "{value}"')
    assert f"rendezvous = {value}: must be HOST:PORT" in text


def test_several_hosts_meet_somewhere_and_one_nowhere(cluster_file: Path) -> None:
    assert "several hosts need HOST:PORT" in complaint(cluster_file, "kind: torchrun\nnodes: 2")
    assert "one host needs none" in complaint(cluster_file, "kind: torchrun\nrendezvous: a:1")
    cluster_file.write_text("kind: torchrun\nnodes: 2\nrendezvous: node-1.example:29400", encoding="utf-8")
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, TorchrunCluster)
    assert cluster.rendezvous == "node-1.example:29400"


@pytest.mark.parametrize("name", ["A;B", "$(id)", "A B", "1A", "A=B", "''", "-A"])
def test_a_variable_has_a_sound_name(cluster_file: Path, name: str) -> None:
    text = complaint(cluster_file, f"kind: local\nenvironment: {{{name}: x}}")
    assert f"environment.{name.strip(chr(39))}: a variable's name must hold letters, digits and _ only" in text


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MEGASLM_JOB", "MEGASLM_HOSTS"])
def test_the_launchers_own_variables_are_not_set_beside_them(cluster_file: Path, name: str) -> None:
    assert f"environment.{name}: is set by the launcher" in complaint(
        cluster_file, f"kind: local\nenvironment: {{{name}: node-1}}"
    )


def test_values_are_text_and_no_credentials(cluster_file: Path) -> None:
    assert "environment.OMP_NUM_THREADS = 4: must be text" in complaint(
        cluster_file, "kind: local\nenvironment: {OMP_NUM_THREADS: 4}"
    )
    text = complaint(cluster_file, "kind: local\nenvironment: {HF_TOKEN: hunter2}")
    assert "environment.HF_TOKEN: holds credentials" in text
    assert "hunter2" not in text
    assert "holds a null character" in complaint(cluster_file, 'kind: local\nenvironment: {A: "a\\0b"}')


def test_what_a_hostfile_cannot_carry_is_refused(cluster_file: Path) -> None:
    text = complaint(cluster_file, 'kind: hostfile\nhostfile: hosts.txt\nenvironment: {A: "a\\nb"}')
    assert "environment.A: holds a line break" in text
    assert "put such a value into a file" in text
    text = complaint(cluster_file, 'kind: hostfile\nhostfile: hosts.txt\nenvironment: {CUDA_VISIBLE_DEVICES: "4,5"}')
    assert "environment.CUDA_VISIBLE_DEVICES: DeepSpeed sets it, to as many GPUs as a host has slots" in text


def test_a_node_has_gpus_or_ranks(cluster_file: Path) -> None:
    assert "exactly one of gpus_per_node and ranks_per_node" in complaint(cluster_file, "kind: slurm")
    assert "found both" in complaint(cluster_file, "kind: slurm\ngpus_per_node: 1\nranks_per_node: 1")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("{nodes: 3}", "options.nodes: is settled by nodes"),
        ("{wrap: reboot}", "options.wrap: is settled by the command"),
        ("{'qos=a --wrap': b}", "must be a long option"),
        ("{-w: node-1}", "must be a long option"),
        ('{comment: "a\\nb"}', "options.comment: must be on one line"),
        ("{exclusive: false}", "options.exclusive = false"),
    ],
)
def test_options_of_slurm_are_options(cluster_file: Path, option: str, message: str) -> None:
    assert message in complaint(cluster_file, f"kind: slurm\ngpus_per_node: 8\noptions: {option}")


@pytest.mark.parametrize("time", ["90", "30:00", "12:00:00", "2-0", "2-00:00", "2-00:00:00"])
def test_times_are_as_sbatch_takes_them(cluster_file: Path, time: str) -> None:
    cluster_file.write_text(f'kind: slurm\nranks_per_node: 1\ntime: "{time}"', encoding="utf-8")
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, SlurmCluster)
    assert cluster.time == time


@pytest.mark.parametrize("image", ["-v", "a b", "a;b", "$(id)", "a'b"])
def test_an_image_is_an_image(cluster_file: Path, image: str) -> None:
    assert f"image = {image}: must be an image" in complaint(
        cluster_file, KUBERNETES.replace("image: r/i", f'image: "{image}"')
    )
