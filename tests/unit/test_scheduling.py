"""Which tests share a worker."""

from tests.scheduling import OneWorkerForAFile


def test_a_file_has_one_worker_and_all_faults_share_one() -> None:
    scheduling = object.__new__(OneWorkerForAFile)
    files = ("tests/unit/test_a.py", "tests/unit/test_b.py", "tests/faults/test_a.py", "tests/multinode/test_b.py")
    first, second, *faults = [scheduling._split_scope(f"{file}::test") for file in files]
    assert first != second
    assert len(set(faults)) == 1
    assert scheduling._split_scope(f"{files[0]}::test_another") == first
