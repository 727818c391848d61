"""Quark through a real Trainer, on a tiny policy and a reward that counts words."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch

from callbacks import HuggingFaceExport
from lightning_rarlhf.config import EvaluationConfig, PolicyConfig, QuarkConfig, SamplingConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.quark.batch import batch_of, rows_of_step
from lightning_rarlhf.quark.pool import QuarkPool
from lightning_rarlhf.quark_module import QuarkModule
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.stepping.manual_updater import ManualUpdater
from tests.quiet_trainer import quiet_trainer
from tests.test_ppo_module import Prompts, Watch
from tests.tiny_models import causal_lm, save_policy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def module_of(folder, lr=1e-2, quark=None, **settings):
    settings.setdefault("sampling", SamplingConfig(max_new_tokens=6, top_p=0.9))
    return QuarkModule(
        policy=PolicyConfig(pretrained=str(folder)),
        reward=CallableReward("tests.test_ppo_module.goodness"),
        quark=quark or QuarkConfig(batch_size=8, sample_interval=2, initial_iterations=2),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        evaluation=EvaluationConfig(tail_levels=(0.25,), perplexity_texts=0),
        **settings,
    )


def trainer_of(tmp_path, steps, *callbacks, **settings):
    return quiet_trainer(
        tmp_path,
        max_steps=steps,
        max_epochs=100,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **settings,
    )


def fit(folder, tmp_path, steps, *callbacks, batch_size=8, ckpt_path=None, seed="0", **settings):
    module, watch = module_of(folder, **settings), Watch()
    trainer = trainer_of(tmp_path, steps, watch, *callbacks)
    trainer.fit(module, datamodule=Prompts(batch_size, 50), ckpt_path=ckpt_path)
    return module, watch, trainer


def test_an_iteration_is_one_global_step_and_the_pool_grows_by_a_batch(policy_folder, tmp_path):
    module, _, trainer = fit(policy_folder, tmp_path, 3)
    assert trainer.global_step == 3
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {3 * 2}
    assert len(module.pool) == 3 * 8
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_loss_is_the_sum_that_the_paper_says(policy_folder, tmp_path):
    module, _, _ = fit(policy_folder, tmp_path, 1)
    pool = module.pool
    batch = batch_of(pool, torch.arange(4).numpy(), torch.tensor([0, 1, 4, 4] + [0] * 4).numpy(), 1)
    loss, nll, kl, entropy = module.losses(batch)
    expected = {"nll": [], "kl": [], "entropy": []}
    for row, (prompt, response) in enumerate(pool.read(range(4))):  # row by row, with the whole networks
        token = int(module.actor.tokens[batch.quantiles[row]])
        words = module.actor.vocabulary
        told = module.actor.lm(torch.tensor([[token, *prompt, *response]])).logits[0, len(prompt) : -1, :words]
        plain = module.reference.model.lm(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        policy, reference = (torch.distributions.Categorical(logits=each) for each in (told, plain))
        expected["nll"] += (-policy.log_prob(torch.tensor(response))).tolist()
        expected["kl"] += torch.distributions.kl_divergence(policy, reference).tolist()
        expected["entropy"] += policy.entropy().tolist()
    means = {name: sum(values) / len(values) for name, values in expected.items()}
    assert (nll.item(), kl.item(), entropy.item()) == pytest.approx(tuple(means.values()), rel=1e-4)
    assert loss.item() == pytest.approx(means["nll"] + 0.05 * means["kl"] - 0.06 * means["entropy"], rel=1e-4)


def test_the_first_iterations_ask_the_reference_and_later_ones_the_policy(policy_folder, tmp_path, monkeypatch):
    asked = []

    def noted(self, *args):
        asked.append(self.trainer.global_step)
        return _sample(self, *args)

    monkeypatch.setattr(QuarkModule, "_sample", noted)
    fit(policy_folder, tmp_path, 4)
    assert asked == [2, 3]


_sample = QuarkModule._sample


@pytest.mark.parametrize(("top_p", "repeats"), [(0.01, True), (1.0, False)])
def test_the_pools_own_top_p_holds_for_reference_and_policy(policy_folder, tmp_path, top_p, repeats):
    """At a top-p that leaves one token, a prompt's response is always the same: iterations 0 and 1, and 2 and 3."""
    quark = QuarkConfig(batch_size=8, sample_interval=1, initial_iterations=2, exploration_top_p=top_p)
    module, _, _ = fit(policy_folder, tmp_path, 4, quark=quark, lr=0.0)
    drawn = [module.pool.read(range(8 * iteration, 8 * iteration + 8)) for iteration in range(4)]
    assert [drawn[0] == drawn[1], drawn[2] == drawn[3]] == [repeats] * 2


def test_each_iteration_takes_the_pool_in_orders_of_its_own(policy_folder, tmp_path, monkeypatch):
    seeds = []

    def noted(responses, step, size, seed):
        seeds.append(seed)
        return rows_of_step(responses, step, size, seed)

    monkeypatch.setattr("lightning_rarlhf.quark_module.rows_of_step", noted)
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        fit(policy_folder, tmp_path / seed, 3)
    assert [seeds[0::2], seeds[1::2]] == [seeds[0::2]] * 2  # both steps of an iteration draw from the same orders
    assert len(set(seeds)) == 2 * 3


def test_a_trivial_task_is_learned(policy_folder, tmp_path):
    quark = QuarkConfig(batch_size=32, sample_interval=4, initial_iterations=3)
    _, watch, _ = fit(policy_folder, tmp_path, 25, batch_size=32, quark=quark, lr=5e-3)
    scores = [output["scores"].mean().item() for output in watch.outputs]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 1


def test_a_killed_run_goes_on_bit_by_bit(policy_folder, tmp_path):
    """Six iterations at once; or four, of which the last one is lost in a kill after the checkpoint at three."""
    whole, _, _ = fit(policy_folder, tmp_path / "whole", 6)

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")
            if trainer.global_step == 4:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(policy_folder, tmp_path / "parts", 6, Kill())
    pool = QuarkPool(tmp_path / "parts" / "quark_pool")
    assert (pool.folder / "index.bin").stat().st_size == 4 * 8 * 24  # one batch more than the checkpoint knows
    module = module_of(policy_folder)
    prompts = Prompts(8, 50)
    skipped = prompts.train_dataloader().dataset[3:]  # its loader keeps no position
    trainer_of(tmp_path / "parts", 6).fit(
        module, torch.utils.data.DataLoader(skipped, batch_size=None), ckpt_path=str(tmp_path / "three.ckpt")
    )
    for name in ("index.bin", "tokens.i32"):
        one, other = (tmp_path / run / "quark_pool" / name for run in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
    for one, other in zip(whole.actor.lm.parameters(), module.actor.lm.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_longer_resumed_run_goes_on_in_its_own_decay(policy_folder, tmp_path, monkeypatch):
    """Two iterations of two steps, then four: at each step the rate of a run that was to be four from the start."""
    rates = []

    def step(updater, norm):
        rates.append(updater._module.optimizers().param_groups[0]["lr"])
        take(updater, norm)

    take = ManualUpdater.step
    monkeypatch.setattr(ManualUpdater, "step", step)
    _, _, trainer = fit(policy_folder, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    rates.clear()
    fit(policy_folder, tmp_path, 4, ckpt_path=tmp_path / "two.ckpt")
    assert rates == pytest.approx([1e-2 * (1 - step / 8) for step in range(4, 8)])


def test_a_fit_empties_no_pool_that_a_checkpoint_or_another_run_needs(policy_folder, tmp_path):
    fit(policy_folder, tmp_path, 1)
    index = tmp_path / "quark_pool" / "index.bin"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    before = index.read_bytes()
    trial = module_of(policy_folder)
    trainer_of(tmp_path, 1, fast_dev_run=1).fit(trial, datamodule=Prompts(8, 50))
    assert len(trial.pool) == 8
    assert not trial.pool.folder.exists()
    with pytest.raises(UserError, match="holds another run's 8 responses; go on with --ckpt_path last"):
        fit(policy_folder, tmp_path, 1)
    quark = QuarkConfig(batch_size=8, sample_interval=2, pool=str(index.parent))
    with pytest.raises(UserError, match=r"or choose another --model\.quark\.pool"):
        fit(policy_folder, tmp_path / "second", 1, quark=quark)
    assert index.read_bytes() == before
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    module, _, _ = fit(policy_folder, tmp_path, 2)  # the run was killed before its first checkpoint
    assert len(module.pool) == 16


@pytest.mark.parametrize("unused_rows", [False, True])
def test_the_exported_folder_is_tested_at_its_best_token_and_needs_a_reference(policy_folder, tmp_path, unused_rows):
    if unused_rows:  # the reward tokens then take some of them
        policy_folder = save_policy(tmp_path / "start")
        causal_lm("gpt2", vocabulary=32).save_pretrained(policy_folder)
    fit(policy_folder, tmp_path, 2, HuggingFaceExport(), reference=str(policy_folder))
    exported = tmp_path / "huggingface"
    with pytest.raises(UserError, match="cannot be its own reference; name the model"):
        trainer_of(tmp_path, 1).test(module_of(exported), datamodule=Prompts(), verbose=False)
    module = module_of(exported, reference=str(policy_folder))
    trainer_of(tmp_path, 1).test(module, datamodule=Prompts(), verbose=False)
    assert (tmp_path / "results.json").is_file()
    text = (tmp_path / "generations.jsonl").read_text()
    assert "reward_" not in text
    assert all(math.isfinite(score) for score in module.pool.scores) if module._pool else True


def test_explored_in_parts_a_thread_scores_and_nothing_else_changes(policy_folder, tmp_path, monkeypatch):
    """A batch of 8 is explored 3 prompts at a time."""
    quark = QuarkConfig(batch_size=3, sample_interval=2, initial_iterations=1)
    runs = []
    for name, beside in (("alone", False), ("beside", True)):
        monkeypatch.setattr(CallableReward, "works_beside", lambda self, device, beside=beside: beside)
        module, watch, _ = fit(policy_folder, tmp_path / name, 3, quark=quark)
        entries = [{n: v for n, v in entry.items() if not n.startswith("time/")} for entry in watch.logged]
        runs.append((entries, module.pool.scores.tolist(), [output["scores"].tolist() for output in watch.outputs]))
    assert runs[0] == runs[1]
    assert len(runs[0][1]) == 3 * 8
