"""A script's directives are read as sbatch reads them."""

from pathlib import Path

import pytest

from kd_launch.errors import SpecError
from kd_launch.slurm.gres import Gpus
from kd_launch.slurm.inventory import Memory
from kd_launch.slurm.request import Request, read_requests

GOLDEN = Path(__file__).parent / "golden"


def one(*lines: str) -> Request:
    (request,) = read_requests("#!/bin/bash\n" + "\n".join(f"#SBATCH {line}" for line in lines) + "\nsrun x\n")
    return request


def test_our_own_script_of_two_components() -> None:
    teacher, student = read_requests((GOLDEN / "hetjob.sbatch").read_text())
    assert (teacher.partitions, teacher.nodes, teacher.tasks_per_node, teacher.cpus_per_node) == (("a100",), 2, 8, 64)
    assert (teacher.gpus_per_node, teacher.memory, teacher.time_s) == ((Gpus("a100", 8),), Memory(per_node=0), 28800)
    assert (teacher.get("account"), teacher.get("qos"), teacher.get("comment")) == ("team", "long", "Ann's 1st try")
    assert (teacher.takes_whole_nodes, student.takes_whole_nodes) == (True, False)
    assert (student.get("constraint"), student.memory, student.requeues) == ("ib&nvlink", Memory(per_node=921600), True)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sbatch")), ids=lambda path: path.stem)
def test_every_script_of_ours(path: Path) -> None:
    for request in read_requests(path.read_text()):
        assert request.partitions
        assert request.requeues


def test_sites_write_directives_in_many_ways() -> None:
    request = one(
        "-p gpu,debug -N2", "-n 16", "-t 1-0 # a day", "--account", "--gres=gpu:h100:4", "-x n[1-2] --exclusive"
    )
    assert (request.partitions, request.nodes, request.tasks_per_node, request.time_s) == (
        ("gpu", "debug"),
        2,
        8,
        86400,
    )
    assert (request.gpus_per_node, request.excluded) == ((Gpus("h100", 4),), {"n1", "n2"})
    assert (request.takes_whole_nodes, request.get("account")) == (True, "")


def test_the_last_word_counts() -> None:
    assert one("--qos=a", "--qos=b").get("qos") == "b"
    assert one("--requeue", "--no-requeue").requeues is False
    assert one("--requeue", "--no-requeue", "--requeue").requeues is True
    assert one("--nodes=1").requeues is None


def test_gpus_of_a_job_or_of_a_task() -> None:
    assert one("--nodes=2", "--gpus=7").gpus_per_node == (Gpus("", 4),)
    assert one("--ntasks-per-node=4", "--gpus-per-task=a100:1").gpus_per_node == (Gpus("a100", 4),)
    assert one("--gres=nvme:1", "--gpus-per-node=2").gpus_per_node == (Gpus("", 2),)


def test_memory_of_cpus_and_of_gpus() -> None:
    assert one("--mem-per-cpu=2G").memory == Memory(per_cpu=2048)
    assert one("--gpus-per-node=4", "--mem-per-gpu=10G").memory == Memory(per_node=40960)
    assert one("--nodes=1").memory is None


def test_directives_end_with_the_first_command() -> None:
    text = "#!/bin/bash\n\n# a comment\n#SBATCH --nodes=3\n#SBATCHX --nodes=4\nset -e\n#SBATCH --nodes=5\n"
    assert [request.nodes for request in read_requests(text)] == [3]
    assert len(read_requests("#!/bin/bash\n#SBATCH -N1\n#SBATCH packjob\n#SBATCH -N2\n")) == 2


def test_a_line_that_cannot_be_read() -> None:
    with pytest.raises(SpecError, match=r"line 2 of the script, #SBATCH --comment=.*: No closing quotation"):
        one('--comment="x')
