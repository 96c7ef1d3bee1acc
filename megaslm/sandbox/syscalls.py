"""Linux system calls by number, on x86_64 and on aarch64; None where an architecture lacks one.

Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.5.
"""

import platform
from dataclasses import dataclass

FIRST_UNKNOWN = 452
"""System calls are numbered alike on all architectures since 424. From here on they are newer than this table."""

_DENIED: dict[str, tuple[tuple[int | None, int | None], ...]] = {
    "fork, vfork, execve, execveat": ((57, None), (58, None), (59, 221), (322, 281)),
    "kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo": ((62, 129), (200, 130), (129, 138), (297, 240)),
    "ptrace, process_vm_readv, process_vm_writev, kcmp": ((101, 117), (310, 270), (311, 271), (312, 272)),
    "pidfd_open, pidfd_getfd, pidfd_send_signal": ((434, 434), (438, 438), (424, 424)),
    "process_madvise, process_mrelease, migrate_pages, move_pages": ((440, 440), (448, 448), (256, 238), (279, 239)),
    "setpriority, ioprio_set, sched_setscheduler, sched_setparam": ((141, 140), (251, 30), (144, 119), (142, 118)),
    "sched_setattr, sched_setaffinity": ((314, 274), (203, 122)),
    "socket, socketpair": ((41, 198), (53, 199)),
    "io_uring_setup, io_uring_enter, io_uring_register": ((425, 425), (426, 426), (427, 427)),
    "shmget, shmat, shmctl": ((29, 194), (30, 196), (31, 195)),
    "semget, semop, semctl, semtimedop": ((64, 190), (65, 193), (66, 191), (220, 192)),
    "msgget, msgsnd, msgrcv, msgctl": ((68, 186), (69, 189), (70, 188), (71, 187)),
    "mq_open, mq_unlink": ((240, 180), (241, 181)),
    "unshare, setns, chroot, pivot_root": ((272, 97), (308, 268), (161, 51), (155, 41)),
    "mount, umount2, move_mount, open_tree, mount_setattr": ((165, 40), (166, 39), (429, 429), (428, 428), (442, 442)),
    "fsopen, fsconfig, fsmount, fspick": ((430, 430), (431, 431), (432, 432), (433, 433)),
    # Landlock restricts none of these; a program could call them on files that it cannot open, or can only read.
    "truncate, chmod, fchmod, fchmodat": ((76, 45), (90, None), (91, 52), (268, 53)),
    "chown, fchown, lchown, fchownat": ((92, None), (93, 55), (94, None), (260, 54)),
    "setxattr, lsetxattr, fsetxattr": ((188, 5), (189, 6), (190, 7)),
    "removexattr, lremovexattr, fremovexattr": ((197, 14), (198, 15), (199, 16)),
    "utime, utimes, utimensat, futimesat": ((132, None), (235, None), (280, 88), (261, None)),
    # What no calculation needs, and where kernels have had holes.
    "bpf, perf_event_open, userfaultfd": ((321, 280), (298, 241), (323, 282)),
    "add_key, request_key, keyctl": ((248, 217), (249, 218), (250, 219)),
    "name_to_handle_at, open_by_handle_at, fanotify_init": ((303, 264), (304, 265), (300, 262)),
    "personality, modify_ldt, syslog": ((135, 92), (154, None), (103, 116)),
}


@dataclass(frozen=True)
class Architecture:
    """Numbers of one architecture. `audit` is its AUDIT_ARCH constant (linux/audit.h)."""

    audit: int
    denied: tuple[int, ...]
    clone: int
    clone3: int
    tgkill: int
    prlimit64: int
    fcntl: int
    ioctl: int
    capset: int


def _denied(column: int) -> tuple[int, ...]:
    return tuple(pair[column] for pairs in _DENIED.values() for pair in pairs if pair[column] is not None)  # type: ignore[misc]


ARCHITECTURES = {
    "x86_64": Architecture(
        0xC000003E, _denied(0), clone=56, clone3=435, tgkill=234, prlimit64=302, fcntl=72, ioctl=16, capset=126
    ),
    "aarch64": Architecture(
        0xC00000B7, _denied(1), clone=220, clone3=435, tgkill=131, prlimit64=261, fcntl=25, ioctl=29, capset=91
    ),
}
"""By the names of `platform.machine`."""
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446


def this_architecture() -> Architecture:
    """The numbers of this machine; a KeyError where they are not known."""
    return ARCHITECTURES[platform.machine()]
