"""The second table of docs/operations.md: what becomes of jobs on several hosts."""

from tests.faults.table import Row, Table

_ROWS = (
    Row(
        "start",
        "none: a start",
        "from `megaslm launch` to the first step; meanwhile the configuration is loaded, hosts are asked, DeepSpeed's "
        "launcher starts here and on the hosts, ranks import, meet and compare themselves, and open data and model",
        "by pdsh after {pdsh_first_step_seconds:.1f} s: configuration loaded at {pdsh_configured_seconds:.1f}, hosts "
        "asked at {pdsh_hosts_asked_seconds:.1f}, launchers at {pdsh_launcher_seconds:.1f}, ranks started at "
        "{pdsh_ranks_seconds:.1f}, imported at {pdsh_imports_seconds:.1f}, met and compared at "
        "{pdsh_joined_seconds:.1f}; by ssh after {ssh_first_step_seconds:.1f} s (medians of three)",
    ),
    Row(
        "nodes_unreachable",
        "an unknown host name; a host whose sshd refuses; a port that is taken",
        "the host is named before anything is started; status 2",
        "ended after {wrong_name_seconds:.1f}, {ssh_refused_seconds:.1f} and {port_taken_seconds:.1f} s",
    ),
    Row(
        "node_of_another_version",
        "a host with another copy of the code",
        "the preflight names it; status 2",
        "ended {seconds:.0f} s after the start, most of them imports",
    ),
    Row(
        "node_of_its_own_folder",
        "a host on which the run's folder is not the shared one",
        "it says at once that it does not see the folder, looks for a minute, as network file systems remember for so "
        "long what was not there, and the ranks that do not see it are named with their hosts; status 2",
        "ended {seconds:.0f} s after the start",
    ),
    Row(
        "node_failed_early",
        "the ranks of a host fail before they meet the others",
        "their message is told at once, and those that wait for them are ended after a minute",
        "ended after {pdsh_seconds:.0f} s by pdsh, {ssh_seconds:.0f} s by ssh",
    ),
    Row(
        "node_lost",
        "all processes of a host die at once",
        "the others end and name it; the run goes on with one host, on its ranks alone, to the same losses",
        "ended after {seconds:.1f} s; {steps_lost} steps made again (a checkpoint every {steps_between_checkpoints})",
    ),
    Row(
        "network_cut",
        "no packet passes any more",
        "both sides end by themselves after `guard.silence_seconds`, the first rank names the host; the launcher gives "
        "ssh a minute",
        "told after {found_seconds:.1f} s, nothing left on the other side after {other_side_seconds:.1f} s (limit here "
        "{silence_seconds} s); the launcher ended after {seconds:.0f} s",
    ),
    Row(
        "network_cut_briefly",
        "no packet passes for 5 s",
        "training stands still and goes on; equal weights",
        "on again {seconds_to_go_on:.1f} s after the link",
    ),
    Row(
        "nodes_told",
        "the launcher is told to stop: SIGTERM and SIGUSR1 with pdsh, SIGTERM and SIGINT with ssh",
        "all ranks save and end; status 75; no step is made twice after the resume",
        "ended after {pdsh_sigterm_seconds:.1f}, {pdsh_sigusr1_seconds:.1f}, {ssh_sigterm_seconds:.1f} and "
        "{ssh_sigint_seconds:.1f} s",
    ),
    Row(
        "launcher_killed",
        "SIGKILL of the launcher and its whole process group, with pdsh and with ssh",
        "all processes on all hosts are ended",
        "nothing left after {pdsh_seconds:.1f} and {ssh_seconds:.1f} s",
    ),
)

NODES = Table(
    "nodes",
    "make multinode",
    _ROWS,
    "two hosts as network namespaces with an sshd each, a rank on each, gloo and a model of 20 thousand parameters",
)
