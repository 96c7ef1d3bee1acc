"""The second table of docs/operations.md: what becomes of jobs on several hosts."""

from tests.faults.table import Row, Table

_ROWS = (
    Row(
        "start",
        "none: a normal start",
        "the seconds from `megaslm launch` to each stage of the start; after the last named stage, the ranks open "
        "data and model and make the first step",
        "by pdsh, first step after {pdsh_first_step_seconds:.1f} s: configuration loaded at "
        "{pdsh_configured_seconds:.1f}, hosts asked at {pdsh_hosts_asked_seconds:.1f}, launchers started at "
        "{pdsh_launcher_seconds:.1f}, ranks started at {pdsh_ranks_seconds:.1f}, libraries imported at "
        "{pdsh_imports_seconds:.1f}, environments compared at {pdsh_joined_seconds:.1f}; by ssh, first step after "
        "{ssh_first_step_seconds:.1f} s (medians of three)",
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
        "the preflight names the host; status 2",
        "ended {seconds:.0f} s after the start, most of them imports",
    ),
    Row(
        "node_of_its_own_folder",
        "a host on which the run folder is not the shared one",
        "ranks that do not see the shared folder say so at once and look again for 65 s, because a network file "
        "system may report for that long that a new folder is missing; then these ranks and their hosts are named; "
        "status 2",
        "ended {seconds:.0f} s after the start",
    ),
    Row(
        "node_failed_early",
        "the ranks of a host fail before they meet the others",
        "their message is printed at once; the ranks that wait for them are ended after a minute",
        "ended after {pdsh_seconds:.0f} s by pdsh, {ssh_seconds:.0f} s by ssh",
    ),
    Row(
        "node_lost",
        "all processes of a host die at once",
        "the ranks of the other host end and name the lost host; the run continues on the remaining host alone, with "
        "the same losses",
        "ended after {seconds:.1f} s; {steps_lost} steps repeated (a checkpoint every {steps_between_checkpoints} "
        "steps)",
    ),
    Row(
        "network_cut",
        "the network between the hosts is cut for good",
        "both sides end by themselves after `guard.silence_seconds`, and the first rank names the other host; the "
        "launcher waits a minute for ssh",
        "host named after {found_seconds:.1f} s, no process left on the other side after {other_side_seconds:.1f} s "
        "(limit in the test: {silence_seconds} s); launcher ended after {seconds:.0f} s",
    ),
    Row(
        "network_cut_briefly",
        "the network between the hosts is cut for 5 s",
        "training waits and then continues; equal weights",
        "training again {seconds_to_go_on:.1f} s after the link is back",
    ),
    Row(
        "nodes_told",
        "the launcher is told to stop: SIGTERM and SIGUSR1 with pdsh, SIGTERM and SIGINT with ssh",
        "all ranks save and end with status 75; no step is repeated after the resume",
        "ended after {pdsh_sigterm_seconds:.1f}, {pdsh_sigusr1_seconds:.1f}, {ssh_sigterm_seconds:.1f} and "
        "{ssh_sigint_seconds:.1f} s",
    ),
    Row(
        "launcher_killed",
        "SIGKILL of the launcher and its whole process group, with pdsh and with ssh",
        "all processes on all hosts are ended",
        "no process left after {pdsh_seconds:.1f} and {ssh_seconds:.1f} s",
    ),
)

NODES = Table(
    "nodes",
    "make multinode",
    _ROWS,
    "two network namespaces as hosts, each with an sshd and one rank, gloo, and a model of 20 thousand parameters",
)
