"""What `policy.compile_sampling` needs: a compiler, and a network that transformers can compile in one piece."""

from __future__ import annotations

import torch

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.terminal.plain_text import first_line


def require_compiler(device: torch.device) -> None:
    """See that there is what torch's compiler works with: a C++ compiler for the CPU, Triton for a GPU.

    Raises:
        ModelError: with what to install.
    """
    off = "or leave policy.compile_sampling out"
    if device.type != "cpu":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ModelError(
                f"policy.compile_sampling: torch's compiler needs Triton on {device.type}; install it, {off}"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise ModelError(
            f"policy.compile_sampling: torch's compiler needs a C++ compiler on a CPU ({first_line(error)}); install "
            f"g++, or name one in CXX, {off}"
        ) from error


def require_compilable(model: LanguageModel) -> None:
    """Refuse quantised weights, and architectures that transformers itself says cannot be compiled in one piece.

    Raises:
        ModelError: with the reason.
    """
    if getattr(model.lm, "is_quantized", False):
        raise ModelError("policy.compile_sampling: quantised weights cannot be compiled; leave it out")
    if not getattr(model.lm, "_can_compile_fullgraph", False):
        raise ModelError(
            f"policy.compile_sampling: transformers cannot compile {type(model.lm).__name__} as a whole; leave it out"
        )
