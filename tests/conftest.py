"""Every test runs offline, on one thread, in silence, with caches of its own.

Set at import time: these libraries read their environment once, when they are first imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings

_CACHE = tempfile.mkdtemp(prefix="rarlhf-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

os.environ |= {
    # Offline: a name that no test made is an error at once, not a minute of retries.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    # Caches of this process alone: nothing is found that a former run or the user left behind.
    "HF_HOME": str(Path(_CACHE, "huggingface")),
    "MPLCONFIGDIR": str(Path(_CACHE, "matplotlib")),
    "TORCHINDUCTOR_CACHE_DIR": str(Path(_CACHE, "inductor")),
    # One thread: sums are then the same on every run, and pytest's workers do not crowd each other out.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Silence: what a test prints is what it tests.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MPLBACKEND": "Agg",
    # Lightning 2.6 calls what jsonargparse 4.53 deprecates; told once a process, it would fail whichever test is first.
    "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
}
# These point past HF_HOME, or would be sent to a server.
for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_TOKEN"):
    os.environ.pop(name, None)

# No deadline: on a shared machine time says nothing of the code. Derandomised: a failure comes again on the next run.
pytest_plugins = ["tests.tiny_models"]

settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")
