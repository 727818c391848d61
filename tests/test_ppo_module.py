"""The module through a real Trainer, on a tiny policy and a reward that counts words."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from callbacks import RiskSchedule, StopOnSignal
from lightning_rarlhf.config import EvaluationConfig, KLConfig, LoRAConfig, PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.ppo_update import run_ppo_epochs
from lightning_rarlhf.reward_models import CallableReward, ClassifierReward
from tests.quiet_trainer import quiet_trainer
from tests.tiny_models import save_classifier, save_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec.*:FutureWarning",
    "ignore:.*treespec.*:DeprecationWarning",
    "ignore:Found .* in eval mode",
    "ignore:.*does not have many workers",
)


def goodness(prompts, responses):
    """+1 for each good or kind, −1 for each bad or rude, a little for length so that scores rarely tie."""
    worth = {"good": 1.0, "kind": 1.0, "bad": -1.0, "rude": -1.0}
    return [sum(worth.get(word, 0.01) for word in response.split()) for response in responses]


class Prompts(pl.LightningDataModule):
    """The same few prompts, again and again."""

    def __init__(self, batch_size: int = 8, batches: int = 6) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.batches = batches

    def train_dataloader(self):
        return loader([prompt_batch(self.batch_size, first=100 * number) for number in range(self.batches)])

    def val_dataloader(self):
        return loader([prompt_batch(self.batch_size, first=10_000)])

    def identity(self):
        return {"class": "Prompts"}

    test_dataloader = predict_dataloader = val_dataloader


def loader(batches: list[PromptBatch]) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def prompt_batch(rows: int, first: int = 0) -> PromptBatch:
    ids = torch.tensor([[3 + row % 5, 6 + row % 7] for row in range(rows)])
    return PromptBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        index=torch.arange(first, first + rows),
        prompts=tuple(f"p{row}" for row in range(rows)),
        labels=torch.arange(rows) % 2,
        source_scores=torch.full((rows,), torch.nan),
    )


class Watch(Callback):
    """Keeps what each iteration returned and logged."""

    def __init__(self) -> None:
        self.outputs: list[dict] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append(outputs)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def module_of(folder, reward="goodness", lr=1e-3, **settings) -> RiskAversePPOModule:
    settings.setdefault("sampling", SamplingConfig(max_new_tokens=6))
    return RiskAversePPOModule(
        policy=PolicyConfig(pretrained=str(folder)),
        reward=CallableReward(f"{__name__}.{reward}"),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        **settings,
    )


def fit(module, tmp_path, *callbacks, batch_size=8, batches=6, **trainer):
    watch = Watch()
    torch.manual_seed(0)
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=1,
        callbacks=[watch, *callbacks],
        **trainer,
    )
    trainer.fit(module, datamodule=Prompts(batch_size, batches))
    return watch, trainer


def test_an_iteration_is_one_global_step_whatever_the_epochs(policy_folder, tmp_path):
    module = module_of(policy_folder, ppo=PPOConfig(epochs=3, minibatch_size=3))
    _, trainer = fit(module, tmp_path, max_steps=4)
    assert trainer.global_step == 4
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {4 * 3 * 3}


def test_at_iteration_0_kl_to_the_reference_is_0_and_the_first_ratio_is_1(policy_folder, tmp_path):
    watch, _ = fit(module_of(policy_folder, ppo=PPOConfig(epochs=1)), tmp_path, batches=1)
    rollout, stats = watch.outputs[0]["rollout"], watch.outputs[0]["stats"]
    assert rollout.kl.abs().max() < 1e-5  # the policy's numbers are sampling's own: float32 rounding
    assert stats.ratio_mean == pytest.approx(1, abs=1e-6)
    assert stats.clip_fraction == 0
    assert stats.approx_kl < 1e-12


def test_later_epochs_move_the_ratio(policy_folder, tmp_path):
    watch, _ = fit(module_of(policy_folder, ppo=PPOConfig(epochs=4)), tmp_path, batches=1)
    assert watch.outputs[0]["stats"].approx_kl > 1e-7


def test_without_the_schedule_every_episode_is_kept(policy_folder, tmp_path):
    watch, _ = fit(module_of(policy_folder), tmp_path)
    assert {entry["risk/tail_size"] for entry in watch.logged} == {8.0}
    assert {entry["risk/level"] for entry in watch.logged} == {1.0}


def test_a_schedule_at_risk_level_1_changes_nothing(policy_folder, tmp_path):
    plain, _ = fit(module_of(policy_folder), tmp_path)
    scheduled, _ = fit(module_of(policy_folder), tmp_path, RiskSchedule(risk_level=1.0, warmup=0, rho=0.5))
    assert [without_times(entry) for entry in plain.logged] == [without_times(entry) for entry in scheduled.logged]


def without_times(entry: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if not name.startswith("time/")}


def test_the_schedule_shrinks_the_tail_to_alpha(policy_folder, tmp_path):
    watch, _ = fit(module_of(policy_folder), tmp_path, RiskSchedule(risk_level=0.25, warmup=1, rho=0.6))
    sizes = [entry["risk/tail_size"] for entry in watch.logged]
    assert sizes == [8, 8, 6, 4, 2, 2]  # K = .75 / (⌈.6·6⌉ − 1) = .25 an iteration from m = 1 on
    for output, size in zip(watch.outputs, sizes, strict=True):
        assert len(output["kept"]) == size
    last = watch.outputs[-1]
    returns = last["rollout"].scores - watch.logged[-1]["objective/kl_coef"] * last["rollout"].kl
    assert sorted(last["kept"].tolist()) == sorted(returns.argsort()[:2].tolist())


def test_only_kept_rows_reach_the_update(policy_folder, tmp_path):
    """Change the scores of dropped rows: nothing of the update may move."""
    weights = []
    for reward in ("goodness", "goodness_dropped_changed"):
        module = module_of(policy_folder, reward=reward)
        module.risk_level = 0.5
        fit(module, tmp_path, batches=1)
        weights.append(torch.cat([p.detach().flatten() for p in module.actor.parameters()]))
    assert torch.equal(*weights)


def goodness_dropped_changed(prompts, responses):
    scores = goodness(prompts, responses)
    best = sorted(range(len(scores)), key=scores.__getitem__)[len(scores) // 2 + 1 :]
    return [score + 50 if row in best else score for row, score in enumerate(scores)]


def test_every_curve_is_logged_and_finite(policy_folder, tmp_path):
    watch, _ = fit(module_of(policy_folder), tmp_path, RiskSchedule(risk_level=0.5, warmup=1, rho=0.6))
    expected = {
        *(f"objective/{n}" for n in ("score_mean", "score_std", "return_mean", "kl", "kl_coef", "entropy")),
        *(f"risk/{n}" for n in ("level", "tail_size", "var", "cvar", "tail_score_mean")),
        *(f"ppo/{n}" for n in ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "ratio_mean")),
        *(f"ppo/{n}" for n in ("explained_variance", "grad_norm")),
        "tokens/response_length_mean",
        *(f"time/{n}" for n in ("rollout", "score", "update", "iteration")),
    }
    for entry in watch.logged:
        assert expected <= entry.keys()
        assert all(math.isfinite(entry[name]) for name in expected)
    entry = watch.logged[-1]
    assert entry["time/iteration"] == pytest.approx(entry["time/rollout"] + entry["time/score"] + entry["time/update"])


def test_the_kl_coefficient_follows_the_kept_episodes(policy_folder, tmp_path):
    """Eq. 12: the kept rows' mean KL, and K of all rows that were sampled; the curves tell the two means apart."""
    target, horizon = 1.7, 16
    module = module_of(policy_folder, kl=KLConfig(target=target, horizon=horizon), lr=1e-2)
    module.risk_level = 0.5
    watch, _ = fit(module, tmp_path, batches=10)
    coefficients = [entry["objective/kl_coef"] for entry in watch.logged]
    assert coefficients[0] == pytest.approx(0.2)
    within = 0
    for output, entry, before, after in zip(
        watch.outputs, watch.logged, coefficients, [*coefficients[1:], module.kl_controller.value], strict=True
    ):
        kl, kept = output["rollout"].kl, output["rollout"].kl[output["kept"]]
        assert len(kept) == 4
        assert entry["objective/kl"] == pytest.approx(kl.mean().item(), abs=1e-6)
        assert entry["risk/tail_kl_mean"] == pytest.approx(kept.mean().item(), abs=1e-6)
        error = kept.mean().item() / target - 1
        assert after == pytest.approx(before * (1 + max(-0.2, min(0.2, error)) * len(kl) / horizon), rel=1e-5)
        within += abs(error) < 0.2 and abs(kl.mean() - kept.mean()) > 0.1
    assert within >= 2  # iterations in which neither the clip nor equal means hide what is observed


def test_a_horizon_too_small_for_the_batch_is_refused_before_anything_is_sampled(policy_folder, tmp_path, monkeypatch):
    module = module_of(policy_folder, kl=KLConfig(horizon=1))
    monkeypatch.setattr(module, "generate", pytest.fail)
    with pytest.raises(UserError, match=r"kl\.horizon=1 is too small for batches of 8 episodes"):
        fit(module, tmp_path)


@pytest.mark.parametrize("init", [0.0, 0.7])
def test_a_fixed_coefficient_stays(policy_folder, tmp_path, init):
    watch, _ = fit(module_of(policy_folder, kl=KLConfig(adaptive=False, init_kl_coef=init, horizon=1)), tmp_path)
    assert [entry["objective/kl_coef"] for entry in watch.logged] == pytest.approx([init] * 6)


def test_gradient_norm_is_clipped_when_asked(policy_folder, tmp_path):
    def largest_step(limit):
        module = module_of(policy_folder, ppo=PPOConfig(epochs=1, max_grad_norm=limit))
        module.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        before = None

        class Before(Callback):
            def on_train_start(self, trainer, pl_module):
                nonlocal before
                before = torch.cat([p.detach().flatten() for p in pl_module.actor.parameters()]).clone()

        watch, _ = fit(module, tmp_path, Before(), batches=1)
        after = torch.cat([p.detach().flatten() for p in module.actor.parameters()])
        return (after - before).norm().item(), watch.outputs[0]["stats"].grad_norm

    step, norm = largest_step(1e-3)
    assert step == pytest.approx(1e-3, rel=1e-2)
    assert norm > 1e-2  # what is logged is the norm before clipping
    assert largest_step(None)[0] == pytest.approx(norm, rel=1e-3)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(policy_folder, tmp_path, monkeypatch):
    runs = []
    for seed in ("3", "3", "4"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        watch, _ = fit(module_of(policy_folder), tmp_path, batches=2)
        runs.append([without_times(entry) for entry in watch.logged])
    assert runs[0] == runs[1]
    assert runs[0][0]["objective/score_mean"] != runs[2][0]["objective/score_mean"]


def test_each_iteration_of_each_seed_has_minibatches_of_its_own(policy_folder, tmp_path, monkeypatch):
    seeds = []

    def noted(actor, tail, config, sampling, order, updater):
        seeds.append(order.initial_seed())
        return run_ppo_epochs(actor, tail, config, sampling, order, updater)

    monkeypatch.setattr("lightning_rarlhf.ppo_module.run_ppo_epochs", noted)
    for seed in ("3", "4", "3"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        fit(module_of(policy_folder), tmp_path, batches=3, limit_val_batches=0)
    assert len(set(seeds)) == 6
    assert seeds[:3] == seeds[6:]


@pytest.mark.parametrize("family", ["gptj", "llama", "qwen2"])
def test_other_families_train(policy_folders, family, tmp_path):
    watch, _ = fit(module_of(policy_folders[family]), tmp_path, RiskSchedule(risk_level=0.5, warmup=1, rho=0.6))
    assert watch.logged[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(watch.logged[-1]["objective/kl"]) > 1e-3


def test_the_reference_stays_as_it_was_and_out_of_the_checkpoint(policy_folder, tmp_path):
    module = module_of(policy_folder)
    fit(module, tmp_path)
    names = module.state_dict().keys()
    assert all(name.startswith("actor.") for name in names)
    trained = module.actor.lm.get_output_embeddings().weight
    frozen = module.reference.model.lm.get_output_embeddings().weight
    assert not frozen.requires_grad
    assert not torch.equal(trained, frozen)


def test_a_trivial_task_is_learned_and_the_tail_with_it(policy_folder, tmp_path):
    module = module_of(policy_folder, lr=5e-3, kl=KLConfig(init_kl_coef=0.02, adaptive=False))
    watch, _ = fit(module, tmp_path, RiskSchedule(risk_level=0.25, warmup=5, rho=0.6), batch_size=32, batches=40)
    first = torch.cat([output["rollout"].scores for output in watch.outputs[:5]])
    last = torch.cat([output["rollout"].scores for output in watch.outputs[-5:]])
    assert last.mean() > first.mean() + 1
    assert last.sort().values[:16].mean() > first.sort().values[:16].mean() + 0.5  # CVaR at 10 %


def test_validation_uses_the_same_prompts_and_random_numbers_each_time(policy_folder, tmp_path):
    module = module_of(policy_folder, evaluation=EvaluationConfig(tail_levels=(0.25, 1.0)))
    trainer = quiet_trainer(
        tmp_path,
    )
    first, second = (trainer.validate(module, datamodule=Prompts(), verbose=False)[0] for _ in range(2))
    assert first == second
    assert first["val/cvar_100"] == pytest.approx(first["val/score_mean"])
    assert first["val/cvar_25"] < first["val/score_mean"]


def test_the_reference_of_an_evaluations_kl_bans_no_end_of_text(policy_folder, tmp_path, monkeypatch):
    """Policy and reference are one: what is left of KL is what banning the end took from the policy."""
    module = module_of(policy_folder, sampling=SamplingConfig(max_new_tokens=6, min_new_tokens=4))
    drawn: list[Samples] = []
    monkeypatch.setattr(module, "score", lambda samples: drawn.append(samples) or torch.zeros(len(samples.responses)))
    (found,) = quiet_trainer(tmp_path).validate(module, datamodule=Prompts(), verbose=False)
    (samples,) = drawn
    with torch.no_grad():
        logits = module.actor.lm(samples.sequences).logits[:, -1 - samples.response_mask.shape[1] : -1]
    kept = 1 - logits.softmax(-1)[:, :4, module.actor.eos_token_ids].sum(-1)
    assert found["val/kl_mean"] == pytest.approx(-kept.log().sum(1).mean().item(), rel=1e-4)


def test_each_test_counts_the_texts_that_it_cut_itself(policy_folder, tmp_path):
    """A classifier that reads 6 tokens: what it cut in a validation or in another test is not the test's."""
    short = tmp_path / "short"
    save_tokenizer(save_classifier(short), pad="<pad>", context=6)
    module = module_of(policy_folder)
    module.reward, tokenizer = ClassifierReward(str(short), label="toxic"), AutoTokenizer.from_pretrained(short)
    trainer = quiet_trainer(tmp_path)
    trainer.validate(module, datamodule=Prompts(), verbose=False)
    assert module.reward.texts_cut > 0
    for _ in range(2):
        trainer.test(module, datamodule=Prompts(), verbose=False)
        rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
        texts = [row["prompt"] + end for row in rows for end in ("", row["response"])]
        cut = sum(len(ids) > 6 for ids in tokenizer(texts)["input_ids"])
        assert 0 < cut < len(rows)
        assert json.loads((tmp_path / "results.json").read_text())["texts_cut"] == {"reward": cut}


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [("16-true", "float16 overflows"), ("bf16-true", r"policy\.dtype: bfloat16"), ("64-true", "32-true")],
)
def test_other_precisions_are_refused_with_the_alternative(policy_folder, tmp_path, precision, remedy):
    with pytest.raises(UserError, match=remedy):
        fit(module_of(policy_folder), tmp_path, precision=precision)


def test_bf16_mixed_trains_with_ratio_1_at_the_start(policy_folder, tmp_path):
    module = module_of(policy_folder, ppo=PPOConfig(epochs=1))
    watch, _ = fit(module, tmp_path, batches=2, precision="bf16-mixed")
    assert watch.outputs[0]["stats"].ratio_mean == pytest.approx(1, abs=1e-6)
    assert watch.outputs[0]["rollout"].kl.abs().max() == 0  # recomputed as the reference's: no rounding between them
    assert {p.dtype for p in module.actor.parameters()} == {torch.float32}


def test_bf16_mixed_loses_no_step_of_1e_5(policy_folder, tmp_path):
    """Adam's first step moves every weight that has a gradient by the learning rate; bfloat16 weights would stay."""
    module = module_of(policy_folder, lr=1e-5, ppo=PPOConfig(epochs=1))
    start = {}

    class Before(Callback):
        def on_train_start(self, trainer, pl_module):
            start.update({name: p.detach().clone() for name, p in pl_module.actor.named_parameters()})

    fit(module, tmp_path, Before(), batches=1, precision="bf16-mixed")
    moved = {name: (p.detach() - start[name]).abs() for name, p in module.actor.named_parameters() if "mlp" in name}
    steps = torch.cat([step.flatten() for step in moved.values()])
    assert ((steps > 0.5e-5) & (steps < 1.5e-5)).float().mean() > 0.95


@pytest.mark.parametrize(
    ("policy", "precision"),
    [({}, "32-true"), ({"frozen_layers": 1}, "32-true"), ({"lora": LoRAConfig(r=2)}, "32-true"), ({}, "bf16-mixed")],
    ids=["full", "frozen layers", "lora", "bf16"],
)
@pytest.mark.parametrize("scored_by", ["a callable in a thread", "a classifier on the CPU that samples"])
def test_episodes_sampled_in_parts_are_those_of_one_part(
    policy_folder, classifier_folder, tmp_path, policy, precision, scored_by
):
    """Where sampling keeps hidden states, log-probabilities and entropies, and where it does not."""
    beside = "thread" in scored_by
    classifier = ClassifierReward(str(classifier_folder), label="toxic", sign=-1)
    reward = CallableReward(f"{__name__}.goodness_noted") if beside else classifier

    def run(part):
        module = RiskAversePPOModule(
            policy=PolicyConfig(pretrained=str(policy_folder), **policy),
            reward=reward,
            sampling=SamplingConfig(max_new_tokens=6),
            ppo=PPOConfig(epochs=2, minibatch_size=3, micro_rollout_batch_size=part),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        )
        module.risk_level = 0.5
        NOTED.clear()
        watch, _ = fit(module, tmp_path, batches=3, precision=precision)
        calls = [("MainThread", 8)] if part is None else [("reward", 3), ("reward", 3), ("reward", 2)]
        assert not beside or [*calls * 3, ("MainThread", 8)] == NOTED  # the last is validation's
        return watch

    whole, parts = run(None), run(3)
    for one, other in zip(whole.logged, parts.logged, strict=True):
        assert without_times(other) == pytest.approx(without_times(one), rel=1e-5, abs=1e-6)
    for one, other in zip(whole.outputs, parts.outputs, strict=True):
        assert torch.equal(one["rollout"].samples.sequences, other["rollout"].samples.sequences)
        assert one["rollout"].samples.responses == other["rollout"].samples.responses
        assert one["kept"].tolist() == other["kept"].tolist()
    assert "reward" not in {thread.name for thread in threading.enumerate()}


NOTED: list[tuple[str, int]] = []
"""of each call of `goodness_noted` the thread and the responses"""


def goodness_noted(prompts, responses):
    NOTED.append((threading.current_thread().name, len(responses)))
    return goodness(prompts, responses)


def test_while_a_part_is_scored_a_signal_is_taken_and_the_iteration_finished(policy_folder, tmp_path):
    """The main thread waits for the reward when the signal comes."""
    NOTED.clear()
    module = module_of(policy_folder, reward="goodness_and_a_signal", ppo=PPOConfig(micro_rollout_batch_size=4))
    watch = Watch()
    callbacks = [watch, StopOnSignal()]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(SystemExit) as caught:
        trainer.fit(module, datamodule=Prompts())
    assert caught.value.code == 128 + signal.SIGTERM
    assert [*NOTED] == [("reward", 4)] * 2
    assert len(watch.outputs) == 1
    assert "reward" not in {thread.name for thread in threading.enumerate()}


def goodness_and_a_signal(prompts, responses):
    if not NOTED:
        time.sleep(0.3)  # sampling is over by then
        os.kill(os.getpid(), signal.SIGTERM)
    return goodness_noted(prompts, responses)


def test_methods_that_were_replaced_are_called_once_a_part(policy_folder, tmp_path):
    """As benchmarks and callbacks do, to watch or to time them."""
    module, order = module_of(policy_folder, ppo=PPOConfig(micro_rollout_batch_size=3)), []
    draw, score = module.draw, module.score
    module.draw = lambda *args, **kwargs: order.append("sample") or draw(*args, **kwargs)
    module.score = lambda samples: order.append("score") or score(samples)
    fit(module, tmp_path, batches=1, limit_val_batches=0)
    assert sorted(order) == ["sample"] * 3 + ["score"] * 3
