"""Frozen lower layers: whatever is skipped or shared, numbers are those of the same network without either."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import RiskSchedule
from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.checkpoints.trained_weights import only_trained, require_trained
from lightning_rarlhf.config import LoRAConfig, PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.export.__main__ import export_checkpoint
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.loading.empty_policy import empty_policy
from lightning_rarlhf.loading.policy_loading import load_actor_critic, load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.memory.estimate import Estimate, Run, estimate
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.reference import FrozenModel
from lightning_rarlhf.reward_models import CallableReward
from tests.quiet_trainer import quiet_trainer
from tests.test_speed_changes_nothing import Record, prompts
from tests.tiny_models import FAMILIES, causal_lm, save_tokenizer

# the first column is empty: `before_responses` cuts it off
IDS = torch.tensor([[2, 2, 2, 3, 4, 5, 6], [2, 7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[False, False, False, True, True, True, True], [False] + [True] * 6])
RESPONSE = torch.ones(2, 3, dtype=torch.bool)
PLAIN = SamplingConfig()
ITERATIONS = 4


def deep(family: str, frozen: int) -> ActorCritic:
    """Four blocks, where the shipped tiny models have two."""
    lm = causal_lm(family)
    deeper = lm.config
    setattr(deeper, "n_layer" if family in ("gpt2", "gptj") else "num_hidden_layers", 4)
    if hasattr(deeper, "layer_types"):
        deeper.layer_types = ["full_attention"] * 4
    torch.manual_seed(1)
    lm = type(lm)(deeper)
    return ActorCritic(lm, [1], frozen)


def gradients(model: ActorCritic, states: torch.Tensor | None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(IDS, MASK, RESPONSE, PLAIN, states)
    (output.logprobs.sum() + output.values.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_passes_above_give_the_whole_pass_and_its_gradients(self, family, frozen):
        model = deep(family, frozen)
        states = model.frozen_states(IDS, MASK)
        whole, above = (model(IDS, MASK, RESPONSE, PLAIN, each) for each in (None, states))
        torch.testing.assert_close(above.logprobs, whole.logprobs, rtol=0, atol=1e-6)
        torch.testing.assert_close(above.values, whole.values, rtol=0, atol=1e-6)
        torch.testing.assert_close(gradients(model, states), gradients(model, None), rtol=0, atol=1e-5)

    def test_recomputed_blocks_give_the_same_gradients(self, family, frozen):
        model = deep(family, frozen)
        plain = gradients(model, None)
        model.lm.activation_checkpointing_enable()
        torch.testing.assert_close(gradients(model, model.frozen_states(IDS, MASK)), plain, rtol=0, atol=1e-5)

    def test_what_is_frozen_are_the_embeddings_and_the_first_blocks(self, family, frozen):
        model = deep(family, frozen)
        tables = {"wte.weight", "wpe.weight", "embed_tokens.weight"}
        tied = model.lm.get_output_embeddings().weight is model.lm.get_input_embeddings().weight
        for name, parameter in model.lm.base_model.named_parameters():
            lower = any(name.startswith(f"{part}.{number}.") for part in ("h", "layers") for number in range(frozen))
            assert parameter.requires_grad != (name in tables or lower), name
        assert model.lm.get_output_embeddings().weight.requires_grad != tied
        assert tied == (family == "gpt2")
        assert set(gradients(model, None)) == {n for n, p in model.named_parameters() if p.requires_grad}

    def test_each_part_is_computed_only_where_it_is_asked_for(self, family, frozen):
        model = deep(family, frozen)
        blocks = getattr(model.lm.base_model, "h", None) or model.lm.base_model.layers
        ran: list[int] = []
        for number, block in enumerate(blocks):
            block.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
        states = model.frozen_states(IDS, MASK)
        assert ran == list(range(frozen))
        model(IDS, MASK, RESPONSE, PLAIN, states)
        assert ran == list(range(4))
        model(IDS, MASK, RESPONSE, PLAIN)
        assert ran == [*range(4), *range(4)]

    def test_a_twin_shares_the_frozen_weights_and_stays_as_it_was(self, family, frozen):
        model = deep(family, frozen)
        twin = FrozenModel(model.twin()).model
        theirs = dict(twin.named_parameters())
        for name, parameter in model.named_parameters():
            if name.startswith("lm."):
                assert (theirs[name] is parameter) == (not parameter.requires_grad), name
        before = model.before_responses(IDS, MASK, 3).detach()
        assert torch.equal(twin.before_responses(IDS, MASK, 3), before)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1) if parameter.requires_grad else None
        assert torch.equal(twin.before_responses(IDS, MASK, 3), before)
        assert not torch.allclose(model.before_responses(IDS, MASK, 3), before, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_passes_above_are_the_whole_pass_too(family):
    model = deep(family, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        states = model.frozen_states(IDS, MASK)
        whole, above = (model(IDS, MASK, RESPONSE, PLAIN, each) for each in (None, states))
    torch.testing.assert_close(above.logprobs, whole.logprobs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_learned_from_without_a_backward_pass_through_frozen_layers(family):
    model = deep(family, 2)
    model.lm.activation_checkpointing_enable()
    again = LanguageModel(model.lm, [1], 2)
    reached: list[int] = []
    blocks = getattr(again.lm.base_model, "h", None) or again.lm.base_model.layers
    for number, block in enumerate(blocks):
        block.mlp.register_full_backward_hook(lambda *_, number=number: reached.append(number))
    again.text_logprobs(IDS, MASK).sum().backward()
    assert sorted(set(reached)) == [2, 3]


# refused


@pytest.mark.parametrize("lora", [None, LoRAConfig()])
@pytest.mark.parametrize("frozen", [2, 5])
def test_one_layer_at_least_must_train(policy_folder, frozen, lora):
    config = PolicyConfig(pretrained=str(policy_folder), frozen_layers=frozen, lora=lora)
    with pytest.raises(ModelError, match=rf"frozen_layers={frozen}: .* has 2 layers.*expected 0 to 1$"):
        load_actor_critic(config, load_tokenizer(config.pretrained))


def test_an_architecture_with_more_below_than_embeddings_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    with pytest.raises(ModelError, match="BloomForCausalLM has more below its upper layers.*leave frozen_layers out"):
        ActorCritic(BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2)), [1], 1)


def small_run(policy: PolicyConfig) -> Run:
    return Run(
        policy=policy,
        reference=None,
        reward=None,
        optimizer=torch.optim.SGD,
        rows=2,
        update_rows=2,
        prompt_tokens=4,
        sampling=SamplingConfig(max_new_tokens=3),
    )


def bloom(folder: Path) -> Path:
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_it_is_refused_before_its_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_rarlhf.loading.policy_loading.load_causal_lm", lambda *_: pytest.fail("loaded"))
    config = PolicyConfig(pretrained=str(bloom(tmp_path)), frozen_layers=1)
    with pytest.raises(ModelError, match="BloomForCausalLM has more below its upper layers"):
        load_actor_critic(config, load_tokenizer(config.pretrained))
    with pytest.raises(ModelError, match="BloomForCausalLM has more below its upper layers"):
        estimate(small_run(config))


def test_blocks_that_are_called_by_keyword_are_seen_without_contents(policy_folder, monkeypatch):
    from transformers import GPT2LMHeadModel

    own = GPT2LMHeadModel.__init__

    def changed(self, config):
        own(self, config)
        self.transformer.h = ByKeyword(self.transformer.h)

    monkeypatch.setattr(GPT2LMHeadModel, "__init__", changed)
    with pytest.raises(ModelError, match="GPT2LMHeadModel .*calls its blocks in a way of its own"):
        empty_policy(PolicyConfig(pretrained=str(policy_folder), frozen_layers=1))


def test_what_cannot_be_rehearsed_is_asked_with_its_weights(tmp_path):
    """torch multiplies float32 experts, but knows no shapes of the product without contents."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 1, "num_local_experts": 2, "pad_token_id": None}
    MixtralForCausalLM(MixtralConfig(vocab_size=20, **sizes, **experts)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    config = PolicyConfig(pretrained=str(tmp_path), frozen_layers=1)
    assert load_actor_critic(config, load_tokenizer(config.pretrained)).frozen_states(IDS, MASK) is not None
    with pytest.raises(ModelError, match=r"^MixtralForCausalLM cannot be rehearsed without its weights .*max_steps 2$"):
        estimate(small_run(config))


class ByKeyword(torch.nn.ModuleList):
    """Blocks of an architecture that names what it gives them."""

    def __iter__(self):
        return (lambda hidden, *_, block=block, **__: block(hidden_states=hidden) for block in super().__iter__())


def test_blocks_that_are_called_by_keyword_are_refused():
    lm = causal_lm("gpt2")
    lm.transformer.h = ByKeyword(lm.transformer.h)
    with pytest.raises(ModelError, match="calls its blocks in a way of its own"):
        ActorCritic(lm, [1], 1)


# with adapters


@pytest.mark.parametrize(("targets", "quantization"), [(None, None), (["all-linear"], None), (None, "8bit")])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_above_the_frozen_layers_only(policy_folders, family, targets, quantization):
    config = PolicyConfig(
        pretrained=str(policy_folders[family]),
        frozen_layers=1,
        lora=LoRAConfig(r=2, target_modules=targets),
        quantization=quantization,
    )
    actor = load_actor_critic(config, load_tokenizer(config.pretrained))
    learning = [n for n, p in actor.named_parameters() if p.requires_grad and not n.startswith("value_head.")]
    assert learning
    assert all(".1." in name and ".0." not in name for name in learning)
    states = actor.frozen_states(IDS, MASK)
    whole, above = (actor(IDS, MASK, RESPONSE, PLAIN, each).logprobs for each in (None, states))
    torch.testing.assert_close(above, whole, rtol=0, atol=1e-6)


# whole iterations


def worth(prompts, responses):
    """A score that depends on every word."""
    value = {"good": 1.0, "kind": 0.8, "bad": -1.0, "rude": -0.9, "warm": 0.3, "cold": -0.2}
    return [sum(value.get(word, 0.013) for word in response.split()) for response in responses]


class Prompts(pl.LightningDataModule):
    batch_size = 8

    def train_dataloader(self):
        return DataLoader([prompts(8 * number) for number in range(ITERATIONS)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([prompts(1000)], batch_size=None)


class ByHand(RiskAversePPOModule):
    """The same weights do not train; nothing is shared, and every pass goes through the whole network."""

    def _load_actor(self) -> ActorCritic:
        actor = super()._load_actor()
        freeze_first_block(actor)
        return actor


def freeze_first_block(actor: LanguageModel) -> None:
    names = ("wte.", "wpe.", "embed_tokens.", "h.0.", "layers.0.")
    for name, parameter in actor.lm.base_model.named_parameters():
        if name.startswith(names):
            parameter.requires_grad_(False)


def module_of(kind: type[RiskAversePPOModule], reference: str | None = None, **policy: Any) -> RiskAversePPOModule:
    return kind(
        reference=reference,
        policy=PolicyConfig(**policy),
        reward=CallableReward(f"{__name__}.worth"),
        ppo=PPOConfig(minibatch_size=3, micro_batch_size=2),
        sampling=SamplingConfig(max_new_tokens=10),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
    )


def metrics_of(module: LanguageModule, folder, **trainer) -> list[dict[str, float]]:
    record = Record()
    torch.manual_seed(11)
    schedule = RiskSchedule(risk_level=0.5, warmup=1, rho=0.6)
    quiet_trainer(folder, max_epochs=1, callbacks=[record, schedule], **trainer).fit(module, datamodule=Prompts())
    return record.metrics


SETTINGS = {
    "float32": ({}, {}),
    "checkpointing": ({"gradient_checkpointing": True}, {}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize(
    ("family", "setting"),
    [*((family, "float32") for family in FAMILIES), ("gpt2", "checkpointing"), ("gptj", "bf16-mixed")],
)
def test_every_metric_is_that_of_the_same_weights_frozen_by_hand(policy_folders, family, setting, tmp_path):
    policy, trainer = SETTINGS[setting]
    common = {"pretrained": str(policy_folders[family]), **policy}
    plain, shared = module_of(ByHand, **common), module_of(RiskAversePPOModule, frozen_layers=1, **common)
    expected, got = (metrics_of(module, tmp_path, **trainer) for module in (plain, shared))
    assert len(got) == ITERATIONS
    for iteration, (old, new) in enumerate(zip(expected, got, strict=True)):
        assert old.keys() == new.keys()
        for metric, value in old.items():
            assert new[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), (iteration, metric)
    assert got[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(got[-1]["objective/kl"]) > 1e-3
    start = load_causal_lm(PolicyConfig(pretrained=common["pretrained"])).state_dict()
    moved = {name for name, weight in shared.actor.lm.state_dict().items() if not torch.equal(weight, start[name])}
    assert moved == {n for n, p in shared.actor.lm.named_parameters() if p.requires_grad}
    assert all(torch.equal(weight, start[name]) for name, weight in shared.reference.model.lm.state_dict().items())
    held, twins = dict(shared.actor.lm.named_parameters()), dict(shared.reference.model.lm.named_parameters())
    assert all((twins[name] is weight) == (not weight.requires_grad) for name, weight in held.items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sequences_go_through_the_frozen_layers_once_an_iteration(policy_folder, tmp_path, precision):
    """Apart from sampling, which reads prompts and then a token at a time."""
    widths: list[int] = []
    parts: list[int] = []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            for network in (pl_module.actor.lm, pl_module.reference.model.lm):
                below, above = (block.mlp for block in network.transformer.h)
                below.register_forward_hook(lambda _mlp, args, _output: widths.append(args[0].shape[1]))
                above.register_forward_hook(lambda _mlp, args, _output: parts.append(args[0].shape[1]))

    module = module_of(RiskAversePPOModule, pretrained=str(policy_folder), frozen_layers=1)
    trainer = quiet_trainer(tmp_path, max_epochs=1, max_steps=2, callbacks=[Watch()], precision=precision)
    trainer.fit(module, datamodule=Prompts())
    prompt = prompts(0).input_ids.shape[1]
    assert sum(width == prompt for width in widths) == 2
    assert sum(width > prompt for width in widths) == 2
    assert sum(width > 1 for width in parts) > 2 * 4 * 4  # two iterations of four epochs of four parts or more


def test_another_reference_has_layers_of_its_own(policy_folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(policy_folders["llama"], other)
    lm = causal_lm("llama")
    lm.model.layers[0].mlp.up_proj.weight.data.mul_(0.5)
    lm.save_pretrained(other)
    common = {"reference": str(other), "pretrained": str(policy_folders["llama"])}
    expected = metrics_of(module_of(ByHand, **common), tmp_path)
    module = module_of(RiskAversePPOModule, frozen_layers=1, **common)
    for old, new in zip(expected, metrics_of(module, tmp_path), strict=True):
        assert new == pytest.approx(old, rel=1e-5, abs=1e-5)
    assert abs(expected[0]["objective/kl"]) > 1e-3
    ours, theirs = ({p.data_ptr() for p in lm.parameters()} for lm in (module.actor.lm, module.reference.model.lm))
    assert not ours & theirs


# checkpoints


@pytest.fixture(scope="module")
def checkpoint(policy_folders, tmp_path_factory) -> Path:
    """At the end of a run; its final weights lie beside it."""
    folder = tmp_path_factory.mktemp("frozen")

    module = module_of(RiskAversePPOModule, pretrained=str(policy_folders["gptj"]), frozen_layers=1)
    trainer = quiet_trainer(folder, max_epochs=1)
    trainer.fit(module, datamodule=Prompts())
    trainer.save_checkpoint(folder / "last.ckpt")
    torch.save(module.actor.state_dict(), folder / "end.pt")
    return folder / "last.ckpt"


def validated(checkpoint: Path, folder: Path, **policy) -> RiskAversePPOModule:
    module = module_of(RiskAversePPOModule, **policy)
    quiet_trainer(folder).validate(module, datamodule=Prompts(), ckpt_path=checkpoint, verbose=False)
    return module


def test_a_checkpoint_holds_what_is_trained_and_gives_the_policy_again(checkpoint, policy_folders, tmp_path):
    module = validated(checkpoint, tmp_path, pretrained=str(policy_folders["gptj"]), frozen_layers=1)
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert set(held) == {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert not any(".h.0." in name or ".wte." in name for name in held)
    end = torch.load(checkpoint.with_name("end.pt"), weights_only=True)
    assert all(torch.equal(weight, end[name]) for name, weight in module.actor.state_dict().items())


def test_a_checkpoint_of_frozen_layers_is_none_of_a_policy_without(checkpoint, policy_folders, tmp_path):
    with pytest.raises(
        UserError, match=r"lacks actor\.lm\.transformer\.h\.0\..*settings of model\.policy .*frozen_layers"
    ):
        validated(checkpoint, tmp_path, pretrained=str(policy_folders["gptj"]))


def test_a_checkpoint_whose_weights_would_be_frozen_is_refused(policy_folders):
    """They would go into the reference as well."""
    config = PolicyConfig(pretrained=str(policy_folders["llama"]), frozen_layers=1)
    holder = torch.nn.ModuleDict({"actor": load_actor_critic(config, load_tokenizer(config.pretrained))})
    require_trained(holder, only_trained(holder, holder.state_dict()), trains_part=True)
    with pytest.raises(UserError, match=r"checkpoint: has frozen actor\.lm\.model\.embed_tokens\.weight"):
        require_trained(holder, holder.state_dict(), trains_part=True)


def test_an_export_is_the_whole_policy(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "exported", "merged", None)
    exported = load_causal_lm(PolicyConfig(pretrained=str(tmp_path / "exported"))).state_dict()
    held = torch.load(checkpoint, weights_only=True)
    start = load_causal_lm(PolicyConfig(pretrained=held["policy"]["pretrained"])).state_dict()
    for name, weight in exported.items():
        assert torch.equal(weight, held["state_dict"].get(f"actor.lm.{name}", start[name])), name


# the estimate of memory


def test_the_estimate_counts_shared_weights_once_and_states_in_place_of_activations(policy_folder):
    def of(frozen: int) -> Estimate:
        policy = PolicyConfig(pretrained=str(policy_folder), frozen_layers=frozen)
        return estimate(
            Run(
                policy=policy,
                reference=policy,
                reward=None,
                optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-5),
                rows=8,
                update_rows=8,
                prompt_tokens=6,
                sampling=SamplingConfig(max_new_tokens=10),
            )
        )

    plain, frozen = of(0), of(1)
    block = sum(p.numel() for p in causal_lm("gpt2").transformer.h[0].parameters()) * 4
    tables = sum(getattr(causal_lm("gpt2").transformer, name).weight.numel() for name in ("wte", "wpe")) * 4
    assert frozen.held["policy"] == plain.held["policy"]
    assert plain.held["reference"] - frozen.held["reference"] == block + tables
    assert plain.held["optimizer state"] - frozen.held["optimizer state"] == 2 * (block + tables)
    assert frozen.phases["update"]["frozen layers' states"] == 8 * 16 * 16 * 4
    assert "frozen layers' states" not in plain.phases["update"]
    assert frozen.phases["update"]["activations"] < 0.7 * plain.phases["update"]["activations"]
