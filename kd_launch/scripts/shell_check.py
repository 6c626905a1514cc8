"""Whether bash can read what people wrote for it: setup lines that are not whole swallow the script."""

from kd_launch.cluster import Cluster
from kd_launch.commands import Runner
from kd_launch.errors import SpecError, printable

CHECK_S = 10.0


def refuse_broken_shell(cluster: Cluster, script: str, run: Runner) -> None:
    """Lets bash read each setup by itself and, where the site has a template of its own, the script.

    Raises:
        SpecError: bash cannot. Nothing is said where there is no bash.
    """
    setups = {"setup": cluster.setup, **{f"pool {pool.name}: setup": pool.setup or "" for pool in cluster.pools}}
    texts = {**setups, **({f"{cluster.template}: the script": script} if cluster.template else {})}
    for field, text in texts.items():
        if text.strip():
            done = run(["bash", "-O", "extglob", "-n"], timeout=CHECK_S, stdin=text + "\n")
            if done.problem is None and (not done.ok or done.stderr):
                words = printable(done.stderr.strip().split("\n")[0], 300)
                raise SpecError(f"{field}: is no whole shell text: {words}; try it with `bash -n`")
