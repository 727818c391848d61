from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.data_types import TextBatch
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.sft_module import SFTModule
from tests.quiet_trainer import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

TEXTS = [[3, 4, 5, 6, 1], [7, 8, 1], [9, 10, 11, 1]]


def text_batch(texts: list[list[int]], pad_to: int = 0) -> TextBatch:
    width = max(pad_to, *map(len, texts))
    return TextBatch(
        input_ids=torch.tensor([row + [1] * (width - len(row)) for row in texts]),
        attention_mask=torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in texts]),
    )


def module_of(folder, **settings) -> SFTModule:
    module = SFTModule(policy=PolicyConfig(pretrained=str(folder)), **settings)
    module.actor = load_actor_critic(module.policy_config, load_tokenizer(str(folder)))
    return module


def fit(folder, tmp_path, steps, lr=1e-2, ckpt_path=None, callbacks=(), **settings):
    module = SFTModule(
        policy=PolicyConfig(pretrained=str(folder)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        **settings,
    )
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = quiet_trainer(
        tmp_path,
        max_steps=steps,
        callbacks=[Rates(), *callbacks],
    )
    trainer.fit(module, DataLoader([text_batch(TEXTS)] * steps, batch_size=None), ckpt_path=ckpt_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module, rates


def test_the_loss_is_that_of_transformers(policy_folder):
    module = module_of(policy_folder)
    batch = text_batch(TEXTS)
    labels = batch.input_ids.masked_fill(~batch.attention_mask, -100)
    expected = module.actor.lm(batch.input_ids, attention_mask=batch.attention_mask.long(), labels=labels).loss
    torch.testing.assert_close(module.loss(batch), expected)


def test_padding_columns_do_not_change_the_loss(policy_folder):
    module = module_of(policy_folder)
    torch.testing.assert_close(module.loss(text_batch(TEXTS)), module.loss(text_batch(TEXTS, pad_to=9)))


def test_the_end_of_a_text_is_learned_even_where_pad_and_end_are_one_token(policy_folder):
    module = module_of(policy_folder)
    with_end, without = module.loss(text_batch([[3, 4, 1]])), module.loss(text_batch([[3, 4]], pad_to=3))
    assert with_end != without


def test_texts_are_learned(policy_folder, tmp_path):
    before = module_of(policy_folder).loss(text_batch(TEXTS)).item()
    module, _ = fit(policy_folder, tmp_path, steps=60, lr=0.1)
    assert module.loss(text_batch(TEXTS)).item() < before / 2


def test_the_learning_rate_falls_linearly_to_0(policy_folder, tmp_path):
    assert fit(policy_folder, tmp_path, steps=4)[1] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert fit(policy_folder, tmp_path, steps=4, linear_decay=False)[1] == pytest.approx([1e-2] * 4)


@pytest.mark.parametrize("sizes", [[3], [1, 2], [1, 1, 1]])
def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batches(policy_folder, tmp_path, sizes):
    module = SFTModule(policy=PolicyConfig(pretrained=str(policy_folder)))
    batches = [text_batch(TEXTS[sum(sizes[:n]) : sum(sizes[: n + 1])]) for n in range(len(sizes))]
    loader = DataLoader(batches, batch_size=None)
    trainer = quiet_trainer(tmp_path)
    found = [trainer.validate(module, loader, verbose=False)[0] for _ in range(2)]
    logprobs = module.actor.lm(text_batch(TEXTS).input_ids).logits.log_softmax(-1)  # padded behind: nothing to mask
    losses = [-logprobs[row, n - 1, text[n]] for row, text in enumerate(TEXTS) for n in range(1, len(text))]
    expected = torch.stack(losses).mean().item()
    assert found == [{"val/loss": pytest.approx(expected, rel=1e-6)}] * 2


def test_a_validation_loss_that_is_no_number_is_not_left_out(policy_folder, tmp_path):
    module = SFTModule(policy=PolicyConfig(pretrained=str(policy_folder)))
    trainer, loader = quiet_trainer(tmp_path), DataLoader([text_batch([text]) for text in TEXTS], batch_size=None)
    trainer.validate(module, loader, verbose=False)
    with torch.no_grad():
        module.actor.lm.transformer.wpe.weight[3] = torch.nan  # read in the longest text alone
    (found,) = trainer.validate(module, loader, verbose=False)
    assert math.isnan(found["val/loss"])


@pytest.mark.parametrize("lr", [1e-2, 2e-2])
@pytest.mark.parametrize("written_by", ["this version", "a version that decayed by LinearLR"])
def test_a_longer_resumed_run_goes_on_in_its_own_decay(policy_folder, tmp_path, written_by, lr):
    assert fit(policy_folder, tmp_path, steps=4)[1] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    last = tmp_path / "last.ckpt"
    if written_by != "this version":
        rewrite_as_linear_lr(last, steps=4)
    rates = fit(policy_folder, tmp_path, steps=8, lr=lr, ckpt_path=last)[1]
    assert rates == pytest.approx([lr * (1 - step / 8) for step in range(4, 8)])


def rewrite_as_linear_lr(path, steps):
    """Give a checkpoint the scheduler's state that earlier versions wrote."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"lr_schedulers": [scheduler.state_dict()]}, path)


def test_a_run_resumed_at_its_own_length_has_the_rates_of_the_whole_one(policy_folder, tmp_path):
    class Half(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = fit(policy_folder, tmp_path, steps=7, callbacks=[Half()])[1]
    assert fit(policy_folder, tmp_path, steps=7, ckpt_path=tmp_path / "half.ckpt")[1] == whole[3:]


def test_only_the_language_model_is_trained(policy_folder, tmp_path):
    torch.manual_seed(0)
    module, _ = fit(policy_folder, tmp_path, steps=2)
    torch.manual_seed(0)
    fresh = module_of(policy_folder)
    assert not torch.equal(
        module.actor.lm.get_output_embeddings().weight, fresh.actor.lm.get_output_embeddings().weight
    )
    assert all(parameter.grad is None for parameter in module.actor.value_head.parameters())


class Stream(IterableDataset):
    """Batches whose number nobody knows beforehand."""

    def __init__(self, batches: list[TextBatch]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("batches", [2, 3, 4])
def test_an_accumulated_step_is_the_mean_over_the_tokens_of_the_batches_it_has(
    policy_folder, tmp_path, batches, stream
):
    data = [text_batch([TEXTS[number % 3]]) for number in range(batches)]
    module = SFTModule(
        policy=PolicyConfig(pretrained=str(policy_folder)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        linear_decay=False,
    )
    trainer = quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3)
    trainer.fit(module, DataLoader(Stream(data) if stream else data, batch_size=None))
    assert trainer.global_step == -(-batches // 3)
    by_hand = module_of(policy_folder)
    optimizer = torch.optim.SGD(by_hand.actor.lm.parameters(), lr=0.1)
    for start in range(0, batches, 3):
        optimizer.zero_grad()
        losses, tokens = zip(*(by_hand.nll(batch) for batch in data[start : start + 3]), strict=True)
        assert len({count.item() for count in tokens}) > 1 or len(tokens) == 1
        (sum(losses) / sum(tokens)).backward()
        optimizer.step()
    for ours, theirs in zip(module.actor.lm.parameters(), by_hand.actor.lm.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
