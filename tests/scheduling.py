"""Which tests share a worker where tests run in parallel."""

from xdist.scheduler import LoadFileScheduling

ON_ONE_WORKER = ("tests/faults/", "tests/multinode/")
"""They share two hosts, material, and a file of figures."""


class OneWorkerForAFile(LoadFileScheduling):
    """Gives each file to one worker, and all files of ON_ONE_WORKER to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests of faults" if nodeid.startswith(ON_ONE_WORKER) else super()._split_scope(nodeid)
