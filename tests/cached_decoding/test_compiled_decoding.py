"""Compiled steps against the plain loop.

The compiler takes seconds for each network, so most of these run the step as it is, or through a backend that traces it
and compiles nothing. Its outputs are overwritten at every call, as a CUDA graph's are.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from transformers import GPT2Config, GPT2LMHeadModel, Lfm2Config, Lfm2ForCausalLM, MistralConfig, MistralForCausalLM

from lightning_rarlhf.cached_decoding import compiled_decoding, compiled_step, twin
from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.cached_decoding.compilable import require_compiler
from lightning_rarlhf.cached_decoding.compiled_decoding import CompiledDecoding
from lightning_rarlhf.config import LoRAConfig, PolicyConfig, PPOConfig, QuarkConfig, SamplingConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.layers.packed_linear import can_pack
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.quark_module import QuarkModule
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.sampling import SamplingSeed, sample
from tests.quiet_trainer import quiet_trainer
from tests.test_ppo_module import Prompts
from tests.test_sampling import PROMPTS, Waits, batch_of
from tests.test_speed_changes_nothing import Prompts as RaggedPrompts
from tests.test_speed_changes_nothing import Record
from tests.tiny_models import FAMILIES

TOKENS = 12
SAMPLING = SamplingConfig(max_new_tokens=TOKENS)


@pytest.fixture
def as_it_is(monkeypatch) -> None:
    """The step without the compiler."""
    monkeypatch.setattr(compiled_step, "compile_step", lambda step, device: step)


@pytest.fixture
def traced(monkeypatch) -> list[torch.fx.GraphModule]:
    """The step as traced, operation by operation; the list grows with each compilation."""
    compilations: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        compilations.append(graph)
        kept: list[torch.Tensor] = []

        def replay(*args):
            outputs = graph(*args)
            if not kept:
                kept.extend(output.clone() for output in outputs)
            for mine, output in zip(kept, outputs, strict=True):
                mine.copy_(output)
            return tuple(kept)

        return replay

    monkeypatch.setattr(compiled_step, "BACKEND", backend)
    return compilations


def actor_of(folder, **policy) -> tuple[ActorCritic, object]:
    tokenizer = load_tokenizer(str(folder))
    return load_actor_critic(PolicyConfig(pretrained=str(folder), **policy), tokenizer), tokenizer


def drawn(actor, tokenizer, decoding, prompts=PROMPTS * 6, iteration=0):
    """Draw by the plain loop and by `decoding`, with many ends of text; the same must come of it."""
    theirs, hidden_theirs = by(CachedDecoder(actor, keep_hidden=True), actor, tokenizer, prompts, iteration)
    mine, hidden = by(decoding.decoder(actor, TOKENS, keep_hidden=True), actor, tokenizer, prompts, iteration)
    assert torch.equal(mine.sequences, theirs.sequences)
    assert torch.equal(mine.response_mask, theirs.response_mask)
    mask = mine.response_mask
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.entropy, theirs.entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden[mask], hidden_theirs[mask], atol=1e-5, rtol=0)
    return mine


def drawn_roughly(actor, tokenizer, decoding, iteration=0):
    """In bfloat16 another token may be drawn where two meet: what is drawn must be as likely as a full pass says."""
    decoder = decoding.decoder(actor, TOKENS, keep_hidden=True)
    mine, hidden = by(decoder, actor, tokenizer, PROMPTS * 6, iteration)
    with torch.no_grad():
        full = actor.response_logprobs(mine, SAMPLING)
    torch.testing.assert_close(mine.logprobs[mine.response_mask], full[mine.response_mask], atol=0.1, rtol=0)
    assert hidden.shape == (*mine.response_mask.shape, actor.hidden_size)


def by(decoder, actor, tokenizer, prompts, iteration):
    ends, seed = torch.arange(0, actor.vocabulary, 4), SamplingSeed(base=5, iteration=iteration)
    samples = sample(decoder, batch_of(prompts), SAMPLING, seed, tokenizer, ends, keep_logprobs=True)
    return samples, decoder.hidden(samples.response_mask.shape[1])


def move(actor) -> None:
    """As an optimizer does, in place."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in actor.parameters():
            weight.add_(0.02 * torch.randn_like(weight))


@pytest.mark.usefixtures("as_it_is")
class TestAsItIs:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_ragged_prompts_and_early_ends_give_what_the_plain_loop_gives(self, policy_folders, family):
        actor, tokenizer = actor_of(policy_folders[family])
        decoding = CompiledDecoding()
        lengths = drawn(actor, tokenizer, decoding).lengths
        assert len(set(lengths.tolist())) > 3
        move(actor)
        drawn(actor, tokenizer, decoding, iteration=1)
        drawn(actor, tokenizer, decoding, prompts=[[3, 4, 5]] * 11)  # none is padded, and some rows are empty
        drawn(actor, tokenizer, decoding, prompts=[[3]])

    @pytest.mark.parametrize("family", FAMILIES)
    def test_in_bf16_mixed_the_weights_are_cast_once_a_batch_at_one_address(self, policy_folders, family, monkeypatch):
        monkeypatch.setattr(twin, "can_pack", lambda: False)
        actor, tokenizer = actor_of(policy_folders[family])
        decoding = CompiledDecoding()
        addresses = set()
        for iteration in range(2):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                drawn_roughly(actor, tokenizer, decoding, iteration)
            (compiled,) = decoding._of.values()
            copies = dict(compiled.twin.copied)
            addresses.add(tuple(copy.data_ptr() for copy in copies))
            assert all(torch.equal(small, weight.bfloat16()) for small, weight in copies.items())
            layers = {id(weight) for weight in actor.lm.parameters() if weight.dim() == 2}
            assert {id(weight) for weight in copies.values()} >= layers - {
                id(module.weight) for module in actor.lm.modules() if isinstance(module, torch.nn.Embedding)
            }
            move(actor)
        assert len(addresses) == 1
        drawn(actor, tokenizer, decoding)  # back in float32: made anew
        (compiled,) = decoding._of.values()
        assert not compiled.twin.copied

    @pytest.mark.skipif(not can_pack(), reason="this machine has no bfloat16 products of oneDNN's")
    @pytest.mark.parametrize("settings", [{}, {"lora": LoRAConfig(r=4)}], ids=["full", "lora"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_in_bf16_mixed_on_a_cpu_the_weights_are_packed_once_a_batch(
        self, policy_folders, family, settings, monkeypatch
    ):
        actor, tokenizer = actor_of(policy_folders[family], **settings)
        mine, theirs = CompiledDecoding(), CompiledDecoding()
        for iteration in range(2):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                decoder = mine.decoder(actor, TOKENS, keep_hidden=True)
                samples, hidden = by(decoder, actor, tokenizer, PROMPTS, iteration)
                with monkeypatch.context() as patch:
                    patch.setattr(twin, "can_pack", lambda: False)
                    decoder = theirs.decoder(actor, TOKENS, keep_hidden=True)
                plain, hidden_plain = by(decoder, actor, tokenizer, PROMPTS, iteration)
            assert torch.equal(samples.sequences, plain.sequences)
            assert torch.equal(hidden, hidden_plain)
            move(actor)
        (packed,), (unpacked,) = mine._of.values(), theirs._of.values()
        small = {id(weight) for name, weight in actor.named_parameters() if ".lora_" in name}
        layers = {id(weight) for _, weight in unpacked.twin.copied if weight.dim() == 2}
        assert len(packed.twin.packed) == len(layers - small) > 0
        assert {id(weight) for _, weight in packed.twin.copied if weight.dim() == 2} == small
        assert not unpacked.twin.packed

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("settings", [{"lora": LoRAConfig(r=4)}, {"frozen_layers": 1}], ids=str)
    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_adapters_and_frozen_layers(self, policy_folders, family, settings, dtype):
        actor, tokenizer = actor_of(policy_folders[family], dtype=dtype, **settings)
        decoding = CompiledDecoding()
        check = drawn if dtype == "float32" else drawn_roughly
        for iteration in range(2):
            check(actor, tokenizer, decoding, iteration=iteration)
            move(actor)

    def test_the_network_its_state_and_its_copies_know_nothing_of_it(self, policy_folder):
        actor, tokenizer = actor_of(policy_folder, frozen_layers=1)
        before = list(actor.state_dict()), sum(1 for _ in actor.modules())
        decoding = CompiledDecoding()
        drawn(actor, tokenizer, decoding)
        assert before == (list(actor.state_dict()), sum(1 for _ in actor.modules()))
        for other in (copy.deepcopy(decoding), pickle.loads(pickle.dumps(decoding))):
            assert not len(other._of)
        weights = {id(weight) for weight in actor.parameters()}
        (compiled,) = decoding._of.values()
        assert {id(weight) for weight in compiled.twin.model.parameters()} == weights  # in memory once
        actor.twin()
        del actor, compiled
        assert not len(decoding._of)

    def test_two_batches_of_a_size_at_the_same_time_are_not_mixed_up(self, policy_folder):
        actor, _ = actor_of(policy_folder)
        decoding, batch = CompiledDecoding(), batch_of(PROMPTS)
        first, second = (decoding.decoder(actor, TOKENS) for _ in range(2))
        mask = torch.cat([batch.attention_mask, torch.ones(3, 1, dtype=torch.bool)], dim=1)
        for decoder in (first, second):
            decoder.start(batch.input_ids, batch.attention_mask)
        second.advance(torch.tensor([3, 4, 5]), mask)
        with pytest.raises(RuntimeError, match="one after the other"):
            first.advance(torch.tensor([3, 4, 5]), mask)

    def test_the_sizes_used_last_are_kept(self, policy_folder):
        actor, tokenizer = actor_of(policy_folder)
        decoding = CompiledDecoding()
        for rows in (1, 2, 4, 2, 8):
            drawn(actor, tokenizer, decoding, prompts=[[3, 4]] * rows)
        (compiled,) = decoding._of.values()
        assert [step.rows for step in compiled.steps] == [4, 2, 8]

    def test_a_step_much_wider_than_the_text_is_not_used(self, policy_folder):
        """Every step attends to all columns."""
        actor, tokenizer = actor_of(policy_folder)
        decoding = CompiledDecoding()
        for width in (40, 21, 3):
            drawn(actor, tokenizer, decoding, prompts=[[3] * width] * 2)
        (compiled,) = decoding._of.values()
        assert [step.columns for step in compiled.steps] == [64, 16]

    @pytest.mark.parametrize("how", ["parameters", "data"])
    def test_weights_that_took_the_others_place_are_read(self, policy_folder, how):
        actor, tokenizer = actor_of(policy_folder)
        decoding = CompiledDecoding()
        drawn(actor, tokenizer, decoding)
        state = {name: 0.05 * torch.randn_like(weight) for name, weight in actor.state_dict().items()}
        if how == "parameters":
            actor.load_state_dict(state, assign=True)
        else:  # a compiled step may hold the address
            for name, weight in actor.named_parameters():
                weight.data = state[name]
        before = list(decoding._of.values())
        drawn(actor, tokenizer, decoding)
        assert list(decoding._of.values()) != before

    def test_a_window_wider_than_the_text_is_as_good_as_none(self, policy_folder):
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(0)
        config = MistralConfig(vocab_size=17, num_key_value_heads=1, sliding_window=64, pad_token_id=1, **shape)
        actor = ActorCritic(MistralForCausalLM(config), [1])
        drawn(actor, load_tokenizer(str(policy_folder)), CompiledDecoding())

    def test_what_cannot_be_compiled_is_refused_in_a_line(self, monkeypatch):
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
        config = Lfm2Config(vocab_size=9, num_hidden_layers=2, layer_types=["conv", "full_attention"], **shape)
        conv = ActorCritic(Lfm2ForCausalLM(config), [1])
        with pytest.raises(ModelError, match=r"compile_sampling: .*(lfm2|Lfm2).*leave it out"):
            CompiledDecoding().decoder(conv, 4)
        gpt2 = ActorCritic(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)), [1])
        monkeypatch.setattr(GPT2LMHeadModel, "_can_compile_fullgraph", False)
        with pytest.raises(ModelError, match="cannot compile GPT2LMHeadModel as a whole"):
            CompiledDecoding().decoder(gpt2, 4)
        monkeypatch.undo()
        gpt2.lm.is_quantized = True
        with pytest.raises(ModelError, match="quantised weights"):
            CompiledDecoding().decoder(gpt2, 4)

    def test_an_architecture_that_counts_positions_by_itself_is_found_out(self, monkeypatch):
        gpt2 = ActorCritic(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)), [1])
        forward = type(gpt2.lm.base_model).forward

        def wrong(self, *args, past_key_values=None, position_ids=None, **kwargs):
            shift = 0 if past_key_values is None else 1
            return forward(self, *args, past_key_values=past_key_values, position_ids=position_ids + shift, **kwargs)

        monkeypatch.setattr(type(gpt2.lm.base_model), "forward", wrong)
        with pytest.raises(ModelError, match="does not give the same states over a key-value cache of fixed size"):
            CompiledDecoding().decoder(gpt2, 4)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])  # the latter has the reward tokens among its logits
def test_quark_explores_by_it_too(policy_folders, tmp_path, traced, family):
    def scores(compiled):
        torch.manual_seed(0)
        module = QuarkModule(
            policy=PolicyConfig(pretrained=str(policy_folders[family]), compile_sampling=compiled),
            reward=CallableReward("tests.test_ppo_module.goodness"),
            quark=QuarkConfig(batch_size=8, sample_interval=2, initial_iterations=1),
            sampling=SamplingConfig(max_new_tokens=6),
        )
        trainer = quiet_trainer(tmp_path / str(compiled), max_steps=3, limit_val_batches=0)
        trainer.fit(module, datamodule=Prompts(8, 3))
        assert len(module.actor._own) == (len(module.actor.tokens) if family == "qwen2" else 0)
        return module.pool.scores

    assert scores(True).tolist() == scores(False).tolist()
    assert len(traced) == 2  # the reference, which draws first, and the policy


def test_one_size_is_compiled_once_whatever_the_weights(policy_folder, traced):
    actor, tokenizer = actor_of(policy_folder)
    decoding = CompiledDecoding()
    for iteration in range(3):
        drawn(actor, tokenizer, decoding, iteration=iteration)
        move(actor)
    drawn(actor, tokenizer, decoding, prompts=PROMPTS * 4)  # in the larger batch's step
    drawn(actor, tokenizer, decoding, prompts=[[3] * 9] * 18)  # another prompt width, the same columns
    assert len(traced) == 1
    drawn(actor, tokenizer, decoding, prompts=PROMPTS * 2)  # a step of its own
    assert len(traced) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_a_cuda_graph_reads_and_writes_stays_where_it_is(policy_folders, traced, family):
    """Else the graph would copy it in at each replay, or, where it is written, there would be none."""
    actor, tokenizer = actor_of(policy_folders[family])
    drawn(actor, tokenizer, CompiledDecoding())
    (graph,) = traced
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    fixed = {node.name: node.meta["tensor_dict"].get("_dynamo_static_input_type") for node in inputs}
    assert len(fixed) > 20
    assert set(fixed.values()) == {"unguarded"}, [name for name, kind in fixed.items() if kind != "unguarded"]


def test_no_step_waits_for_the_device_whatever_the_padding(policy_folder, traced, monkeypatch):
    actor, tokenizer = actor_of(policy_folder)
    decoding = CompiledDecoding()
    drawn(actor, tokenizer, decoding)
    (graph,) = traced
    inside = {str(node.target).rpartition(".")[2] for node in graph.graph.nodes}
    assert "index_copy_" in inside
    assert not inside & {"item", "tolist", "nonzero", "_local_scalar_dense", "__bool__"}
    # and what is around it: the step itself is left out, as no mode may watch a compiled function
    (compiled,) = decoding._of.values()
    (step,) = compiled.steps
    states = torch.zeros(step.rows, actor.hidden_size), torch.zeros(step.rows, actor.vocabulary)
    step._step = lambda: states
    monkeypatch.setattr("lightning_rarlhf.sampling._patience", lambda _device: 5)

    def waits(tokens):
        sampling, seed = SamplingConfig(max_new_tokens=tokens), SamplingSeed(base=5)
        with Waits() as counted:
            decoder = decoding.decoder(actor, tokens, keep_hidden=True)
            sample(decoder, batch_of(PROMPTS * 6), sampling, seed, tokenizer, torch.tensor([-1]), keep_logprobs=True)
        return counted.count

    assert waits(21) - waits(1) == 20 // 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_by_torchs_own_compiler(policy_folder, precision):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=17, n_positions=64, bos_token_id=1, eos_token_id=1)
    actor, tokenizer = ActorCritic(GPT2LMHeadModel(config), [1]), load_tokenizer(str(policy_folder))
    decoding = CompiledDecoding()
    compare = drawn if precision == "float32" else drawn_roughly
    for iteration in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            compare(actor, tokenizer, decoding, iteration=iteration)
        move(actor)


class State(Callback):
    """Names of what a checkpoint would hold."""

    def on_train_end(self, trainer, pl_module):
        self.names = list(pl_module.state_dict())


@pytest.mark.parametrize(
    ("settings", "part"), [({}, None), ({"lora": LoRAConfig(r=4)}, None), ({}, 3)], ids=["whole", "lora", "in parts"]
)
def test_a_run_has_the_plain_runs_metrics(policy_folders, tmp_path, monkeypatch, traced, settings, part):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    found = []
    for compiled in (False, True):
        torch.manual_seed(11)
        module = RiskAversePPOModule(
            policy=PolicyConfig(pretrained=str(policy_folders["llama"]), compile_sampling=compiled, **settings),
            reward=CallableReward("tests.test_speed_changes_nothing.worth"),
            ppo=PPOConfig(epochs=2, micro_rollout_batch_size=part if compiled else None),
            sampling=SamplingConfig(max_new_tokens=8),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        )
        record, state = Record(), State()
        # validation comes first, in inference mode; what it allocates is training's too
        trainer = quiet_trainer(tmp_path, max_steps=2, val_check_interval=1, num_sanity_val_steps=1)
        trainer.callbacks += [record, state]
        trainer.fit(module, datamodule=RaggedPrompts())
        found.append((record.metrics, state.names))
        assert not module._compiled or not len(module._compiled._of)  # given back
    (plain, names), (mine, mine_names) = found
    assert names == mine_names
    assert len(mine) == len(plain) == 2
    for before, after in zip(plain, mine, strict=True):
        assert before.keys() == after.keys()
        for metric, value in before.items():
            assert after[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), metric
    assert len(traced) == (1 if part is None else 2)  # validation's batch of 8, and parts of 3, 3 and 2


def test_what_the_compiler_cannot_do_is_said_in_a_line(policy_folder, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(compiled_step, "BACKEND", broken)
    actor, tokenizer = actor_of(policy_folder)
    with pytest.raises(ModelError, match=r"compile_sampling: torch cannot compile.*leave it out") as caught:
        drawn(actor, tokenizer, CompiledDecoding())
    assert "\n" not in str(caught.value)


def test_so_is_an_error_that_the_compiler_lets_through(policy_folder, monkeypatch):
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    actor, tokenizer = actor_of(policy_folder)
    for error, told in (
        (GuardOnDataDependentSymNode("u0 > 0", "Could not guard\nand more"), ModelError),
        (torch.OutOfMemoryError("too much"), torch.OutOfMemoryError),  # a smaller batch helps, not another sampler
    ):

        def fails(error=error):
            raise error

        monkeypatch.setattr(compiled_step, "compile_step", lambda step, device, fails=fails: fails)
        with pytest.raises(told) as caught:
            drawn(actor, tokenizer, CompiledDecoding())
        assert "\n" not in str(caught.value)
        assert told is torch.OutOfMemoryError or caught.value.__cause__ is error


class Compiled:
    """What a backend gives back."""

    def __init__(self, graph) -> None:
        self.graph = graph

    def __call__(self, *args):
        return self.graph(*args)


def test_what_was_compiled_goes_with_its_step(policy_folder, monkeypatch):
    compiled: list[weakref.ref] = []

    def backend(graph, inputs):
        made = Compiled(graph)
        compiled.append(weakref.ref(made))
        return made

    def there():
        gc.collect()
        return [reference() is not None for reference in compiled]

    monkeypatch.setattr(compiled_step, "BACKEND", backend)
    monkeypatch.setattr(compiled_decoding, "_SIZES", 1)
    actor, tokenizer = actor_of(policy_folder)
    decoding = CompiledDecoding()
    drawn(actor, tokenizer, decoding, prompts=[[3, 4]])
    assert there() == [True]
    drawn(actor, tokenizer, decoding, prompts=[[3, 4]] * 2)
    assert there() == [False, True]
    drawn(actor, tokenizer, decoding, prompts=[[3, 4]] * 2, iteration=1)  # the other's end has not touched it
    assert there() == [False, True]
    decoding.clear()
    assert there() == [False, False]


def test_a_machine_without_a_compiler_is_told_before_anything_is_loaded(policy_folder, tmp_path, monkeypatch):
    from torch._inductor import config

    require_compiler(torch.device("cpu"))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ModelError, match=r"needs Triton on cuda.*leave policy\.compile_sampling out"):
        require_compiler(torch.device("cuda"))
    module = RiskAversePPOModule(
        policy=PolicyConfig(pretrained="no/such-model", compile_sampling=True),
        reward=CallableReward("tests.test_ppo_module.goodness"),
    )
    told = pytest.raises(ModelError, match=r"C\+\+ compiler on a CPU.*CXX.*leave policy\.compile_sampling out")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), told as caught:
        quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=Prompts())
    assert "\n" not in str(caught.value)


def test_an_architecture_that_cannot_be_compiled_is_refused_before_the_first_batch(
    policy_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(GPT2LMHeadModel, "_can_compile_fullgraph", False)
    monkeypatch.setattr(RiskAversePPOModule, "generate", None)
    module = RiskAversePPOModule(
        policy=PolicyConfig(pretrained=str(policy_folder), compile_sampling=True),
        reward=CallableReward("tests.test_ppo_module.goodness"),
    )
    with pytest.raises(ModelError, match="cannot compile GPT2LMHeadModel as a whole"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=Prompts())
