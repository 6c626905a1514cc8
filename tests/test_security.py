"""What must not get out, and what must not get in: secrets, others' pickles, templates, links."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Project
from render_cases import CASES, H100, cluster_of, pool
from test_submit import FOREVER

from kd_launch import commands
from kd_launch.errors import CheckError, SpecError
from kd_launch.ownership import refuse_others
from kd_launch.reading.spec_file import load
from kd_launch.run_dir import RunDir
from kd_launch.runs.cancel import cancel

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MY_SECRET")
VALUE = "hf_AbCdEfGhIjKlMnOp"


def text_with(**changes: Any) -> str:
    return replace(CASES["hetstep"], cluster=cluster_of(pool("h100"), **changes)).text()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_written_into_no_script(name: str) -> None:
    for field, changes in (
        ("environment", {"environment": {name: VALUE}}),
        ("setup", {"setup": f"module load x\nexport {name}='{VALUE}'"}),
        ("setup", {"setup": f"A=1 {name}={VALUE} true"}),
    ):
        with pytest.raises(SpecError, match=rf"^{field}: {name} looks like a secret.*=\$\(< ~/.secret\)") as caught:
            text_with(**changes)
        assert VALUE not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": {"DB_PASSWORD": "pa$$word'1"}}, "environment: DB_PASSWORD looks like"),
        ({"environment": {"PGPASSWORD": "correct-horse"}}, "environment: PGPASSWORD looks like"),
        ({"environment": {"https_proxy": "http://me:horse@proxy:3128"}}, "environment: https_proxy looks like"),
        ({"setup": "hf auth login --token hf_" + "aB3" * 11}, r"setup: a token of Hugging Face \(hf_\.\.\.\) looks"),
        ({"pool": {"sbatch": ["--export=ALL,HF_TOKEN=" + VALUE]}}, "pool h100: sbatch: HF_TOKEN looks like"),
        ({"pool": {"srun": ["--export=HF_TOKEN=" + VALUE]}}, "pool h100: srun: HF_TOKEN looks like"),
    ],
)
def test_secrets_in_other_places(changes: dict[str, Any], words: str) -> None:
    cluster = cluster_of(pool("h100", **changes.get("pool", {})), **{k: v for k, v in changes.items() if k != "pool"})
    with pytest.raises(SpecError, match=words):
        replace(CASES["hetstep"], cluster=cluster).text()


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {"https_proxy": "http://proxy:3128", "SSL_KEY": "/etc/ssl/site.key"}, "setup": "echo TOKEN"},
        {"setup": "export https_proxy=http://$ME:$TOKEN_OF_MINE@proxy:3128"},
        {"setup": "export HF_TOKEN=$(< ~/.token)"},
        {"setup": 'export HF_TOKEN="$TOKEN_OF_MINE"'},
        {"setup": "export SSL_KEY=/etc/ssl/site.key"},
        {"environment": {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "TOKENIZERS_PARALLELISM": "false_or_true"}},
    ],
)
def test_what_only_sounds_like_a_secret_passes(changes: dict[str, Any]) -> None:
    assert "TOKEN" in text_with(**changes) or "KEY" in text_with(**changes)


def test_a_secret_on_the_command_line_is_not_repeated(project: Project) -> None:
    with pytest.raises(SpecError) as caught:
        load(project.config, [f"cluster.HF_TOKEN={VALUE}"], environ={}, cwd=project.folder)
    assert str(caught.value).startswith("--set cluster.HF_TOKEN=***: HF_TOKEN: is no key here")
    assert VALUE not in str(caught.value)


def test_the_callers_secrets_are_in_no_file_of_a_run(project: Project) -> None:
    project.environ.update(dict.fromkeys(SECRETS, VALUE))
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    cancel(RunDir(run), commands.run)
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert {"state.json", "plan.json", "job.sbatch"} <= {path.name for path in files}
    assert [path for path in files if VALUE.encode() in path.read_bytes()] == []


def test_only_what_is_ours_alone_to_write_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "mine", tmp_path / "mine" / "pickle"
    folder.mkdir(mode=0o700)
    file.write_bytes(b"")
    file.chmod(0o600)
    refuse_others(file)
    for place in (file, folder):
        mode = place.stat().st_mode
        place.chmod(0o775)
        with pytest.raises(CheckError, match=r"others may write it \(mode 0775\), so it is not run; give `chmod go-w"):
            refuse_others(file)
        place.chmod(mode)
    link = folder / "link"
    link.symlink_to(file)
    with pytest.raises(CheckError, match="is a link"):
        refuse_others(link)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CheckError, match="belongs to user"):
        refuse_others(file)


def test_a_pickle_that_another_could_have_written_is_not_run(tmp_path: Path) -> None:
    """submitit's way of telling a rank its command."""
    pickle, canary = tmp_path / "7_submitted.pkl", tmp_path / "canary"
    pickle.write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    pickle.chmod(0o666)
    environ = {**os.environ, "SUBMITIT_LOCAL_JOB_ID": "7", "SUBMITIT_EXECUTOR": "local"}
    argv = [sys.executable, "-m", "kd_launch.submit", "rank", str(tmp_path)]
    done = commands.run(argv, timeout=60, env=environ)
    assert done.returncode == 1
    assert "others may write it" in done.stderr
    assert not canary.exists()


def test_a_template_runs_no_python(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(SpecError, match=r"own\.j2: access to attribute '__class__' of 'str' object is unsafe"):
        replace(CASES["hetstep"], cluster=H100.model_copy(update={"template": str(own)})).text()


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_PROCID", "KD_LAUNCH_RUN_DIR", "UID"])
def test_nobody_tells_a_script_which_job_it_is(name: str) -> None:
    with pytest.raises(SpecError, match=f"environment: {name} is a variable of the script"):
        text_with(environment={name: "1"})
    assert "SLURM_CPU_BIND" in text_with(environment={"SLURM_CPU_BIND": "none"})
