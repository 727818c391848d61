"""One compiled function of tensors of one size at one address: all of a decoding step between two draws."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from lightning_rarlhf.cached_decoding.fixed_cache import FixedCache, static_address
from lightning_rarlhf.cached_decoding.kv_cache import PromptStates
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.functional.sequences import position_ids
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.terminal.plain_text import first_line

Step = Callable[[], tuple[Tensor, Tensor]]

BACKEND: Any = "inductor"
"""of torch's compiler; tests name cheaper ones"""


class CompiledStep:
    """Tensors for a batch of up to `rows` sequences of up to `columns` tokens, and the step over them.

    Hidden states and logits that a step gives hold until the next one.
    """

    def __init__(self, model: LanguageModel, rows: int, columns: int, *, compiles: bool = True) -> None:
        self.rows, self.columns = rows, columns
        self.batches = 0
        self._model = model
        device = model.device
        self._cache = FixedCache(model.lm.config, rows, columns, device)
        self._tokens = static_address(torch.zeros(rows, dtype=torch.int64, device=device))
        self._alive = static_address(torch.zeros(rows, dtype=torch.bool, device=device))
        self._mask = static_address(torch.zeros(rows, columns, dtype=torch.bool, device=device))
        static_address(self._cache.column)
        self._step: Step = self._compiled(device) if compiles else self._compute
        self._stepped = False

    def begin(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Left-padded prompts, i64 and bool [b, P], b ≤ rows; last hidden states [b, H] and logits [b, V].

        As the plain loop does it: prompts are read once a batch, and their width may differ.
        """
        rows, width = input_ids.shape
        self.batches += 1
        self._alive.zero_()
        self._mask.zero_()
        self._mask[:, 0] = True  # rows that no prompt is in have something to attend to
        self._mask[:rows, :width] = attention_mask
        self._cache.read_prompts()
        with self._model.reading(1):
            output = self._model.lm.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                position_ids=position_ids(attention_mask),
                past_key_values=self._cache.held,
                use_cache=True,
            )
        self._cache.read_steps(width)
        hidden = output.last_hidden_state[:, -1]
        return hidden, self._model.head(hidden)

    def take(self, tokens: Tensor, alive: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """One token a row, i64 and bool [b], of these rows, None = the first b; hidden states and logits of all rows.

        Both hold until the next step only.
        """
        if rows is None:
            self._tokens[: len(tokens)] = tokens
            self._alive[: len(alive)] = alive
        else:
            self._tokens[rows] = tokens
            self._alive[rows] = alive
        torch.compiler.cudagraph_mark_step_begin()
        if self._stepped:
            return self._step()
        with _one_line():
            result = self._step()
        self._stepped = True
        return result

    def prompts(self, rows: int, columns: int) -> PromptStates:
        """What the prompts left in the cache: the first `columns` tokens of the first `rows` rows."""
        return self._cache.prompts(rows, columns)

    def end_all(self) -> None:
        """No row is read any longer, but those that the next steps name."""
        self._alive.zero_()

    def _compiled(self, device: torch.device) -> Step:
        """The step, compiled; what comes of it goes with this object.

        torch keeps what it compiled with the code it compiled it from, for as long as that is there, and keeps the code
        for as long as anything compiled from it is. So this object's code is its own, and is wiped.
        """
        from torch._dynamo.eval_frame import remove_from_cache

        shared = CompiledStep._compute
        own = types.FunctionType(shared.__code__.replace(), shared.__globals__, shared.__name__)
        finalize(self, remove_from_cache, own).atexit = False
        return compile_step(types.MethodType(own, self), device)

    def _compute(self) -> tuple[Tensor, Tensor]:
        """What is compiled: all that happens between two draws."""
        column = self._cache.column
        self._mask.index_copy_(1, column, self._alive[:, None])
        output = self._model.lm.base_model(
            input_ids=self._tokens[:, None],
            attention_mask=self._mask,
            position_ids=(self._mask.sum(dim=1, keepdim=True) - 1).clamp(min=0),
            past_key_values=self._cache.held,
            use_cache=True,
        )
        column.add_(1)
        hidden = output.last_hidden_state[:, -1]
        return hidden, self._model.head(hidden)


@torch.no_grad()
def require_steps(model: LanguageModel) -> None:
    """Refuse an architecture that says something else over a cache of fixed size than without any.

    Two rows of four tokens, one of them padded, of which two are read step by step; nothing is compiled.
    """
    ids = torch.arange(8, device=model.device).view(2, 4) % 3
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :1] = False
    with torch.autocast(model.device.type, enabled=False):
        whole = LanguageModel.trunk(model, ids, mask)[:, 2:]
        step = CompiledStep(model, 2, 8, compiles=False)
        step.begin(ids[:, :2], mask[:, :2])
        stepped = torch.stack([step.take(ids[:, column], mask[:, column], None)[0] for column in (2, 3)], dim=1)
    tolerance = 1e-3 if whole.dtype == torch.float32 else 5e-2
    if not (stepped - whole).float().norm() <= tolerance * whole.float().norm():
        raise ModelError(
            f"policy.compile_sampling: {type(model.lm).__name__} does not give the same states over a key-value cache "
            "of fixed size; leave it out"
        )


def compile_step(step: Step, device: torch.device) -> Step:
    """`step` by torch's compiler: every size fixed, no part of it left to Python; on a GPU as a CUDA graph.

    Before each call the compiled code would look whether thousands of objects are still what it was compiled for, which
    takes longer than GPT-2's step on a GPU. Nobody else has hold of them, so it does not look.
    """
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True  # all that the mode "reduce-overhead" sets
    compiler: Any = torch.compile  # its types know less than it takes
    compiled: Step = compiler(
        step, backend=BACKEND, fullgraph=True, dynamic=False, options=options, isolate_recompiles=True
    )
    return compiled


@contextmanager
def _one_line() -> Iterator[None]:
    """What the compiler cannot do is said in a line; it has errors of its own, and lets others' through."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelError(
            f"policy.compile_sampling: torch cannot compile this policy's step ({first_line(error)}); leave it out; if "
            "a run was killed while it compiled, delete torch's cache (TORCHINDUCTOR_CACHE_DIR or /tmp/torchinductor_*)"
        ) from error
