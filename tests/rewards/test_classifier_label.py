"""Reading one output of a classifier; as a reward it is tested in `test_reward_models`."""

from __future__ import annotations

import torch

from lightning_rarlhf.rewards.classifier_label import load_classifier_label


def test_a_label_is_read_under_its_name_and_tells_how_many_texts_were_cut(classifier_folder):
    toxic, insult = (load_classifier_label(str(classifier_folder), label) for label in ("toxic", "insult"))
    assert (toxic.name, insult.name) == ("toxic", "insult")
    assert toxic.column != insult.column
    texts = ["the film was good", "bad " * 2 * (toxic.limit or 0)]
    (scores, cut), (others, _) = toxic.logits(texts), insult.logits(texts)
    assert cut == 1
    assert (scores.shape, scores.dtype) == ((2,), torch.float32)
    assert not torch.equal(scores, others)


def test_what_is_loaded_is_frozen(classifier_folder):
    model = load_classifier_label(str(classifier_folder), "toxic").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
