"""Decoding whose every step is one compiled function over tensors of one size at one address.

A step of the plain loop is some hundred small kernels that Python starts one by one; a GPU waits for it. Here trunk,
head, masks and positions are one function, compiled by `torch.compile`, on a GPU as a CUDA graph that is replayed.
"""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn

from lightning_rarlhf.cpu_linear import multiply_by_torch
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.fixed_cache import FixedCache, columns_for, static_address
from lightning_rarlhf.functional.sequences import position_ids
from lightning_rarlhf.kv_cache import PromptStates
from lightning_rarlhf.packed_linear import PackedLinear, PackedWeight, can_pack, pack
from lightning_rarlhf.plain_text import first_line
from lightning_rarlhf.policy import LanguageModel

Step = Callable[[], tuple[Tensor, Tensor]]

_ROOMS = 3
"""sizes of batches whose tensors are kept: training's, validation's, and validation's last"""
BACKEND: Any = "inductor"
"""of torch's compiler; tests name cheaper ones"""


class CompiledDecoding:
    """The compiled steps of each network that a run draws from; they go with their network.

    A copy of it, and what a pickle gives back, is empty: all that it holds can be made again.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[LanguageModel, _Compiled] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledDecoding, ()

    def decoder(self, model: LanguageModel, max_new_tokens: int, *, keep_hidden: bool = False) -> CompiledDecoder:
        """A decoder for one batch, which uses what earlier ones have compiled and allocated."""
        found = self._of.get(model)
        if found is None or not found.serves(model):
            found = self._of[model] = _Compiled(model)
        return CompiledDecoder(found, max_new_tokens, keep_hidden=keep_hidden)

    def clear(self) -> None:
        """Give the memory back."""
        self._of.clear()


class CompiledDecoder:
    """A language model with a key-value cache of fixed size: `sampling.Decoder`, for one batch.

    Rows that have ended stay in the step, whose size is fixed; what it says of them is dropped. Logits hold until the
    next call only, and the batch until another one of its size begins.
    """

    def __init__(self, compiled: _Compiled, max_new_tokens: int, *, keep_hidden: bool = False) -> None:
        """Begin a batch.

        Args:
            compiled: the network's.
            max_new_tokens: there will be no more calls of `advance`.
            keep_hidden: remember the hidden state behind each step's logits.
        """
        self._compiled = compiled
        self._max_new_tokens = max_new_tokens
        self._hidden: list[Tensor] | None = [] if keep_hidden else None
        self._rows: Tensor | None = None

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows, width = input_ids.shape
        self._room = self._compiled.room(rows, width + self._max_new_tokens)
        self._count, self._width = rows, width
        with _ordinary_tensors():
            self._compiled.refresh()
            first = self._kept(*self._room.read(input_ids, attention_mask))
        self._batch = self._room.batches
        return first

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        if self._room.batches != self._batch:
            raise RuntimeError(
                "another batch of this size has begun, and took this one's place; draw one after the other"
            )
        with _ordinary_tensors():
            hidden, logits = self._room.step(tokens, attention_mask[:, -1], self._rows)
            logits = self._kept(hidden[: self._count], logits[: self._count])
            return logits if self._rows is None else logits[self._rows]

    def keep(self, rows: Tensor) -> None:
        self._rows = rows if self._rows is None else self._rows[rows]
        self._room.end_all()  # those that are left come alive with their next token

    def hidden(self, columns: int) -> Tensor | None:
        """[B, T, H], the hidden states that predicted the first T = `columns` tokens drawn; None if they are not kept.

        They mean nothing where a row had ended.
        """
        return None if self._hidden is None else torch.stack(self._hidden[:columns], dim=1)

    def prompts(self) -> PromptStates | None:
        """The prompts' keys and values, until another batch of this size begins."""
        return self._room.prompts(self._count, self._width)

    def _kept(self, hidden: Tensor, logits: Tensor) -> Tensor:
        if self._hidden is not None:
            self._hidden.append(hidden.clone())  # the next replay of a CUDA graph overwrites it
        return logits


class _Compiled:
    """One network's steps: a twin of its modules, and a room for each size of batch.

    The twin shares the network's weights. Under autocast its linear layers have bfloat16 copies of their own, on a CPU
    in oneDNN's order, which are written anew for each batch: cast inside the step, the weights would be read in float32
    at every token. The copies take half of those weights' memory, for as long as the run goes on.
    """

    def __init__(self, model: LanguageModel) -> None:
        require_compilable(model)
        self._setting = _setting(model)
        self._shared = _tensors(model)
        self._addresses = _addresses(self._shared)
        with _ordinary_tensors():
            self._twin = _twin(model)
            _check(self._twin)
            self._packed = _pack_linear_weights(self._twin, *self._setting)
            self._copied = _cast_linear_weights(self._twin, self._setting[1])
        self._rooms: list[_Room] = []

    def serves(self, model: LanguageModel) -> bool:
        """Whether device, precision and the tensors that it reads are still those that it was made for."""
        now = _tensors(model)
        same = len(now) == len(self._shared) and all(map(operator.is_, now, self._shared))
        return same and _addresses(now) == self._addresses and self._setting == _setting(model)

    def refresh(self) -> None:
        """Bring the copies of the weights up to date; each stays at its address."""
        if self._copied:
            copies, weights = zip(*self._copied, strict=True)
            torch._foreach_copy_(copies, weights)
        for packed in self._packed:
            packed.refresh()

    def room(self, rows: int, columns: int) -> _Room:
        """The smallest room that a batch fits in; a new one where it would leave half of the rows or columns empty.

        Only the few rooms that were used last are kept.
        """
        wide = columns_for(columns)
        fitting = [room for room in self._rooms if rows <= room.rows < 2 * rows and columns <= room.columns < 2 * wide]
        if fitting:
            found = min(fitting, key=lambda room: (room.rows, room.columns))
        else:
            with _ordinary_tensors():
                found = _Room(self._twin, rows, wide)
        others = [room for room in self._rooms if room is not found]
        self._rooms = [*others, found][-_ROOMS:]
        return found


class _Room:
    """Tensors for a batch of up to `rows` sequences of up to `columns` tokens, and the step over them."""

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

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
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

    def step(self, tokens: Tensor, alive: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
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
        """The step, compiled; what comes of it goes with this room.

        torch keeps what it compiled with the code it compiled it from, for as long as that is there, and keeps the code
        for as long as anything compiled from it is. So this room's code is its own, and is wiped.
        """
        from torch._dynamo.eval_frame import remove_from_cache

        shared = _Room._compute
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


def copies_bytes(model: LanguageModel) -> int:
    """Bytes of the copies that bf16-mixed sampling keeps of the linear layers' weights."""
    return sum(weight.numel() * torch.bfloat16.itemsize for _, _, weight in _cast_weights(model))


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


def _setting(model: LanguageModel) -> tuple[torch.device, torch.dtype | None]:
    kind = model.device.type
    return model.device, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _tensors(model: LanguageModel) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _addresses(tensors: list[Tensor]) -> list[tuple[int, torch.dtype]]:
    """What a compiled step has fixed of them."""
    return [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]


def _twin(model: LanguageModel) -> LanguageModel:
    """The same modules once more, on the same weights; hooks that come and go on the first are not compiled."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model)}
    twin = copy.deepcopy(model, shared)
    multiply_by_torch(twin)
    return twin


def _pack_linear_weights(twin: LanguageModel, device: torch.device, dtype: torch.dtype | None) -> list[PackedWeight]:
    """Pack the weights of a twin's linear layers, where autocast is to bfloat16 on a CPU that can; none elsewhere."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not can_pack():
        return []
    from transformers.pytorch_utils import Conv1D

    modules = [
        module
        for name, module in twin.lm.named_modules()
        # a subclass may multiply otherwise, and peft looks at its small layers' weights
        if type(module) in (nn.Linear, Conv1D) and ".lora_" not in name and module.weight.dtype == torch.float32
    ]
    return [pack(module) for module in modules]


def _cast_linear_weights(twin: LanguageModel, dtype: torch.dtype | None) -> list[tuple[Tensor, Tensor]]:
    """Give a twin's linear layers weights of autocast's type, None = leave them; each with the one it is a copy of."""
    copied: list[tuple[Tensor, Tensor]] = []
    for module, name, weight in list(_cast_weights(twin)) if dtype is not None else ():
        small = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
        setattr(module, name, small)
        copied.append((small, weight))
    return copied


def _cast_weights(model: LanguageModel) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """What autocast would cast: the linear layers' float32 weights."""
    from transformers.pytorch_utils import Conv1D

    for module in model.lm.modules():
        if isinstance(module, nn.Linear | Conv1D | PackedLinear):
            for name, weight in module.named_parameters(recurse=False):
                if weight.dtype == torch.float32:
                    yield module, name, weight


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Without gradients, but not in inference mode, as validation is: what it allocates, training could not write."""
    with torch.inference_mode(False), torch.no_grad():
        yield


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


@torch.no_grad()
def _check(model: LanguageModel) -> None:
    """Refuse an architecture that says something else over a cache of fixed size than without any.

    Two rows of four tokens, one of them padded, of which two are read step by step; nothing is compiled.
    """
    ids = torch.arange(8, device=model.device).view(2, 4) % 3
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :1] = False
    with torch.autocast(model.device.type, enabled=False):
        whole = LanguageModel.trunk(model, ids, mask)[:, 2:]
        room = _Room(model, 2, 8, compiles=False)
        room.read(ids[:, :2], mask[:, :2])
        stepped = torch.stack([room.step(ids[:, column], mask[:, column], None)[0] for column in (2, 3)], dim=1)
    tolerance = 1e-3 if whole.dtype == torch.float32 else 5e-2
    if not (stepped - whole).float().norm() <= tolerance * whole.float().norm():
        raise ModelError(
            f"policy.compile_sampling: {type(model.lm).__name__} does not give the same states over a key-value cache "
            "of fixed size; leave it out"
        )
