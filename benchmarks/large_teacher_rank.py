"""One rank of `large_teacher`: python -m benchmarks.large_teacher_rank BYTES RUN_DIR --role ROLE"""

import json
import os
import sys
from pathlib import Path

import transformers.models.llama.modeling_llama  # noqa: F401 - the limit counts from after the imports

from benchmarks.large_teacher import Peak, limit_data
from kd_launch.runtime import __main__ as runtime
from kd_launch.runtime import rank as _  # noqa: F401

if __name__ == "__main__":
    allowance, run_dir = int(sys.argv[1]), Path(sys.argv[2])
    peak = Peak()
    limit_data(allowance)
    code = runtime.main(sys.argv[2:])
    (run_dir / f"peak-{os.environ['RANK']}.json").write_text(json.dumps({"peak": peak.bytes}))
    sys.stdout.flush()
    os._exit(code)
