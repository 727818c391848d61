"""A number that is not finite, anywhere in an iteration: no weight is touched, the run stops or skips."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from lightning_rarlhf.config import GuardConfig, KLConfig, PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import TextBatch
from lightning_rarlhf.errors import NumericalError
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.records.crash_bundle import write_crash_bundle
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.sft_module import SFTModule
from tests.quiet_trainer import quiet_trainer
from tests.test_ppo_module import Prompts, Watch, fit, goodness

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*skipped$:UserWarning", "ignore:.*treespec.*", "ignore:.*no `val_dataloader`"
)

SKIP = GuardConfig(on_failure="skip")
broken_calls: set[int] = set()
calls = 0


def sometimes_nan(prompts, responses):
    global calls
    calls += 1
    scores = goodness(prompts, responses)
    return [*scores[:-1], float("nan")] if calls - 1 in broken_calls else scores


def module_of(folder, *, broken: set[int] = frozenset(), lr=1e-3, **settings) -> RiskAversePPOModule:
    global calls, broken_calls
    calls, broken_calls = 0, broken
    return RiskAversePPOModule(
        policy=PolicyConfig(pretrained=str(folder)),
        reward=CallableReward(f"{__name__}.sometimes_nan"),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        sampling=SamplingConfig(max_new_tokens=6),
        kl=KLConfig(target=0.001, horizon=8),
        **settings,
    )


class Poison(Callback):
    """Makes a number NaN in one iteration, and keeps the state before and after it."""

    def __init__(self, where: str, iteration: int = 1) -> None:
        self.where = where
        self.iteration = iteration

    def state(self, trainer, module):
        network = {name: value.clone() for name, value in module.actor.state_dict().items()}
        (optimizer,) = trainer.optimizers
        moments = {f"{n}.{k}": v.clone() for n, s in enumerate(optimizer.state.values()) for k, v in s.items()}
        return network | moments

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx != self.iteration:
            return
        self.before = self.state(trainer, module)
        lm = module.actor.lm
        if self.where == "gradient":
            self.undo = lm.transformer.ln_f.bias.register_hook(lambda gradient: gradient * torch.nan).remove
        elif self.where != "nothing":
            network = {
                "logits": lm.get_output_embeddings(),
                "ref_logprobs": None if module.reference is None else module.reference.model.lm.get_output_embeddings(),
                "values": module.actor.value_head,
            }[self.where]
            self.undo = network.register_forward_hook(lambda module, args, output: output * torch.nan).remove

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == self.iteration:
            if self.where != "nothing":
                self.undo()
            self.after = self.state(trainer, module)


def unchanged(poison: Poison) -> bool:
    assert poison.before.keys() == poison.after.keys()
    return all(torch.equal(poison.before[name], poison.after[name]) for name in poison.before)


MESSAGES = {
    "logits": r"the logits are not finite for 8 of 8 prompts \(prompts 100, 101, .*107\)",
    "ref_logprobs": r"the reference's log-probabilities are not finite for 8 of 8 responses",
    "values": r"the critic's values are not finite for 8 of 8 responses",
    "gradient": r"the gradient is not finite, nothing was updated with it",
}


@pytest.mark.parametrize("where", MESSAGES)
def test_by_default_the_run_stops_and_leaves_a_bundle(policy_folder, tmp_path, where):
    with pytest.raises(NumericalError, match=rf"^iteration 1: {MESSAGES[where]}.*crash/iteration-1$"):
        fit(module_of(policy_folder), tmp_path, Poison(where))
    facts = json.loads((tmp_path / "crash" / "iteration-1" / "crash.json").read_text())
    assert (facts["iteration"], facts["prompt_index"]) == (1, list(range(100, 108)))
    assert facts["rows"] == ([] if where == "gradient" else list(range(8)))
    assert bool(facts["gradients_not_finite"]) == (where == "gradient")
    tensors = load_file(tmp_path / "crash" / "iteration-1" / "tensors.safetensors")
    if where == "logits":  # nothing was sampled yet
        assert tensors["batch.index"].tolist() == list(range(100, 108))
    else:
        assert tensors["rollout.samples.batch.index"].tolist() == list(range(100, 108))
        assert not tensors["rollout.ref_logprobs"].isfinite().all() or where != "ref_logprobs"
    assert ("minibatch.sequences" in tensors) == (where == "gradient")


@pytest.mark.parametrize("where", MESSAGES)
def test_a_skipped_iteration_changes_no_weight_no_moment_and_is_counted(policy_folder, tmp_path, where):
    poison = Poison(where)
    module = module_of(policy_folder, guard=SKIP)
    watch, trainer = fit(module, tmp_path, poison)
    assert unchanged(poison)
    assert trainer.global_step == 6
    assert [len(output) for output in watch.outputs] == [3, 0, 3, 3, 3, 3]
    assert [entry["guard/skipped"] for entry in watch.logged] == [0, 1, 1, 1, 1, 1]
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_score_that_is_not_finite_skips_its_iteration_and_leaves_the_kl_coefficient(policy_folder, tmp_path):
    poison = Poison("nothing", iteration=2)
    watch, _ = fit(module_of(policy_folder, broken={2}, guard=SKIP), tmp_path, poison)
    assert unchanged(poison)
    coefficients = [entry["objective/kl_coef"] for entry in watch.logged]
    assert coefficients[0] != coefficients[1] == coefficients[2]  # the third entry is the second's: nothing was logged
    facts = json.loads((tmp_path / "crash" / "iteration-2" / "crash.json").read_text())
    assert facts["rows"] == [7]
    assert "(responses 7)" in facts["message"]


def test_in_parts_a_bundle_names_rows_of_the_whole_batch(policy_folder, tmp_path):
    """Calls 0 to 2 are the first iteration's, scored in a thread; of the second the part in the middle breaks."""
    module = module_of(policy_folder, broken={4}, guard=SKIP, ppo=PPOConfig(micro_rollout_batch_size=3))
    fit(module, tmp_path, batches=4)
    facts = json.loads((tmp_path / "crash" / "iteration-1" / "crash.json").read_text())
    assert facts["rows"] == [5]
    assert facts["prompt_index"][5] == 105
    assert "prompts in the data: 105; rows 5 of the iteration's batch" in facts["message"]
    assert module.skipped == 1


def test_a_gradient_that_breaks_in_a_later_minibatch_drops_the_rest_of_the_iteration_only(policy_folder, tmp_path):
    class BreakAtTheThird(Poison):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:
                count = iter(range(100))
                bias = module.actor.lm.transformer.ln_f.bias
                self.undo = bias.register_hook(lambda g: g * torch.nan if next(count) == 2 else g).remove

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.steps = next(int(s["step"]) for s in trainer.optimizers[0].state.values())
            if batch_idx == 1:
                assert self.steps == 4 + 2

    poison = BreakAtTheThird("nothing")
    module = module_of(policy_folder, guard=SKIP, ppo=PPOConfig(epochs=2, minibatch_size=4))
    fit(module, tmp_path, poison)
    assert poison.steps == 5 * 4 + 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_too_many_skips_in_a_row_end_the_run(policy_folder, tmp_path):
    guard = GuardConfig(on_failure="skip", max_skips=2, crash_bundles=1)
    with pytest.raises(NumericalError, match=r"^iteration 5: .*2 iterations before it were skipped"):
        fit(module_of(policy_folder, broken={0, 1, 3, 4, 5}, guard=guard), tmp_path)
    assert [path.name for path in (tmp_path / "crash").iterdir()] == ["iteration-0"]


def test_a_resumed_run_goes_on_counting_what_was_skipped(policy_folder, tmp_path):
    """The last two iterations before the checkpoint and the first one after it: one more in a row than may be."""

    def run(epochs, broken, **resume):
        guard = GuardConfig(on_failure="skip", max_skips=2, crash_bundles=0)
        module, watch = module_of(policy_folder, broken=broken, guard=guard), Watch()
        trainer = quiet_trainer(tmp_path, max_epochs=epochs, limit_val_batches=0, callbacks=[watch])
        trainer.fit(module, datamodule=Prompts(batches=3), **resume)
        return module, watch, trainer

    _, _, trainer = run(1, {1, 2})
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    with pytest.raises(NumericalError, match=r"^iteration 3: .*2 iterations before it were skipped"):
        run(2, {0}, ckpt_path=tmp_path / "three.ckpt")
    module, watch, _ = run(2, {1, 2}, ckpt_path=tmp_path / "three.ckpt")  # one that went well is between them
    assert module.skipped == 4
    assert [entry["guard/skipped"] for entry in watch.logged] == [2, 3, 4]


def test_a_bundle_that_cannot_be_written_does_not_hide_what_happened(policy_folder, tmp_path):
    (tmp_path / "crash").write_text("in the way")
    with pytest.raises(NumericalError, match=r"1 of 8 scores are not finite.*could not be written to .*crash"):
        fit(module_of(policy_folder, broken={0}), tmp_path)


def test_the_guards_of_the_update_are_logged_where_they_are_on(policy_folder, tmp_path):
    ppo = PPOConfig(epochs=4, target_kl=1e-9, max_ratio=1e9)
    watch, _ = fit(module_of(policy_folder, lr=1e-2, ppo=ppo), tmp_path, batches=2)
    assert [entry["guard/kl_stopped"] for entry in watch.logged] == [1, 1]
    assert [entry["guard/dropped_minibatches"] for entry in watch.logged] == [0, 0]
    assert [output["stats"].optimizer_steps for output in watch.outputs] == [1, 1]
    plain, _ = fit(module_of(policy_folder), tmp_path, batches=1)
    assert not [name for name in plain.logged[0] if name.startswith("guard/")]


def texts(rows: int = 4) -> DataLoader:
    batches = [
        TextBatch(input_ids=torch.full((rows, 5), 3 + n), attention_mask=torch.ones(rows, 5, dtype=torch.bool))
        for n in range(4)
    ]
    return DataLoader(batches, batch_size=None)


def fit_sft(folder, tmp_path, poison, **settings):
    module = SFTModule(policy=PolicyConfig(pretrained=str(folder)), linear_decay=False, **settings)
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=1,
        callbacks=[poison],
    )
    trainer.fit(module, texts())
    return module, trainer


def test_fine_tuning_is_guarded_as_well(policy_folder, tmp_path):
    with pytest.raises(NumericalError, match=r"^iteration 1: the gradient is not finite.*crash/iteration-1$"):
        fit_sft(policy_folder, tmp_path, Poison("logits"))
    assert "batch.input_ids" in load_file(tmp_path / "crash" / "iteration-1" / "tensors.safetensors")
    poison = Poison("gradient")
    module, trainer = fit_sft(policy_folder, tmp_path, poison, guard=SKIP)
    assert unchanged(poison)
    assert trainer.global_step == 4
    assert module.skipped == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_tensors_that_share_their_memory_are_in_the_bundle(tmp_path):
    tokens = torch.arange(6).view(1, 6)
    folder = write_crash_bundle(tmp_path / "crash", {}, {"prompt": tokens[:, :2], "all": tokens, "columns": tokens.T})
    assert load_file(folder / "tensors.safetensors")["prompt"].tolist() == [[0, 1]]


def test_a_full_disk_does_not_hide_the_numerical_error(policy_folder, tmp_path, monkeypatch):
    def full(tensors, path):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(NumericalError, match="not finite.*could not be written to .*No space left on device"):
        fit_sft(policy_folder, tmp_path, Poison("gradient"))
    assert list((tmp_path / "crash").iterdir()) == []
