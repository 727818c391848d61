"""A virtual environment for each peer, made from the registry on first use, outside this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PEERS = {
    # the transformers, accelerate and numpy of its time; torch is ours, so that libraries are compared, not torches
    "trl==0.7.2": ("transformers==4.36.2", "accelerate==0.25.0", "numpy<2", "pyarrow<18", "datasets<3"),
    "trl==1.9.2": ("transformers==5.23.0", "accelerate==1.15.0"),
}


def python_of(peer: str) -> Path:
    """The interpreter of the peer's environment; installs it when it is not there (some minutes)."""
    import torch

    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning-rarlhf" / "peers"
    folder = base / f"{peer.replace('==', '-')}-torch-{torch.__version__}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {peer} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", peer, *PEERS[peer], f"torch=={torch.__version__}"], check=True
        )
        done.touch()
    return python


def script_of(peer: str) -> Path:
    """The worker that speaks for the peer."""
    return Path(__file__).parent / "peers" / f"{peer.replace('==', '_').replace('.', '_')}.py"
