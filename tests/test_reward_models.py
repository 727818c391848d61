from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch

from lightning_rarlhf.errors import ModelError, RewardError
from lightning_rarlhf.reward_models import CallableReward, ClassifierReward
from tests.tiny_models import WORDS, causal_lm, save_classifier, save_policy, save_tokenizer

CPU = torch.device("cpu")
PROMPTS = ["the film was", "a", "good food and", "the"]
RESPONSES = [" very good", " bad film was not kind", "", " rude"]


def length_reward(prompts, responses):
    return [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]


def two_scores(prompts, responses):
    return [1.0, 2.0]


def nan_scores(prompts, responses):
    return [float("nan")] + [0.0] * (len(responses) - 1)


def a_string(prompts, responses):
    return "0.5"


def strings(prompts, responses):
    return ["high"] * len(responses)


def nothing(prompts, responses):
    return None


def loaded(folder, **settings) -> ClassifierReward:
    reward = ClassifierReward(str(folder), **settings)
    reward.load(CPU)
    return reward


def test_score_is_the_raw_logit_of_the_named_label(classifier_folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    for column, label in enumerate(("toxic", "insult")):
        scores = loaded(classifier_folder, label=label)(PROMPTS, RESPONSES)
        for text, score in zip(map(str.__add__, PROMPTS, RESPONSES), scores, strict=True):
            logit = model(**tokenizer(text, return_tensors="pt")).logits[0, column]
            torch.testing.assert_close(score, logit.detach(), atol=1e-6, rtol=1e-5)


def test_sign_turns_the_score_round(classifier_folder):
    plus = loaded(classifier_folder, label="toxic")(PROMPTS, RESPONSES)
    minus = loaded(classifier_folder, label="toxic", sign=-1)(PROMPTS, RESPONSES)
    assert torch.equal(plus, -minus)


def test_a_preference_is_not_turned_round(classifier_folder, tmp_path):
    """As the configurations of toxic labels would, if only the label were replaced."""
    folder = shutil.copytree(classifier_folder, tmp_path / "pairs")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {0: "preference", 1: "other"}, "label2id": {"preference": 0, "other": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="what people preferred higher.*set model.reward.sign 1"):
        loaded(folder, label="preference", sign=-1)
    plus = loaded(folder, label="preference")(PROMPTS, RESPONSES)
    assert torch.equal(plus, -loaded(classifier_folder, label="toxic", sign=-1)(PROMPTS, RESPONSES))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_micro_batches_change_nothing(classifier_folder, batch_size):
    whole = loaded(classifier_folder, label="toxic")(PROMPTS, RESPONSES)
    parts = loaded(classifier_folder, label="toxic", batch_size=batch_size)(PROMPTS, RESPONSES)
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_prompt_loses_its_beginning_so_that_the_response_is_scored(tmp_path, side, caplog):
    """The classifier reads 32 tokens, <eos> before the text included; whatever side its tokenizer would cut."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = save_classifier(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    tokenizer.truncation_side = side
    tokenizer.save_pretrained(folder)
    response = " was very rude"
    reward = loaded(folder, label="toxic", batch_size=2)
    prompts = ["good " * 60 + "film", "the film", "the" + " good" * 27]  # the last two fit, one of them just so
    scores = reward(prompts, [response] * 3)
    words = tokenizer(("good " * 60 + "film" + response), add_special_tokens=False)["input_ids"]
    assert len(tokenizer(prompts[2] + response)["input_ids"]) == 32
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = model(torch.tensor([[1, *words[-31:]]])).logits[0, 0]
    torch.testing.assert_close(scores[0], expected.detach(), atol=1e-6, rtol=1e-5)
    alone = torch.cat([reward([prompt], [response]) for prompt in prompts[1:]])
    torch.testing.assert_close(scores[1:], alone, atol=1e-6, rtol=1e-5)
    assert reward.texts_cut == 1
    reward(["good " * 60] * 3, [response] * 3)
    assert reward.texts_cut == 4
    said = [record.getMessage() for record in caplog.records if "lose their beginning" in record.getMessage()]
    assert said == [
        f"{folder} reads 32 tokens: 1 of 2 texts are longer and lose their beginning; said once, counted by `test`"
    ]


def test_autocast_of_the_policy_does_not_reach_the_reward(classifier_folder):
    reward = loaded(classifier_folder, label="toxic")
    outside = reward(PROMPTS, RESPONSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward(PROMPTS, RESPONSES), outside)


def test_dtype_is_the_users(classifier_folder):
    full, half = (
        loaded(classifier_folder, label="toxic", dtype=d)(PROMPTS, RESPONSES) for d in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=0.05, rtol=0.05)


def test_a_single_label_needs_no_name(tmp_path):
    assert loaded(save_classifier(tmp_path / "one", labels=("score",)))(PROMPTS, RESPONSES).shape == (4,)


def test_a_decoder_classifier_that_pads_with_another_token_than_its_config_says_scores_batches_alike(tmp_path):
    from transformers import AutoModelForSequenceClassification, GPT2Config

    from lightning_rarlhf.config import BackboneConfig
    from lightning_rarlhf.rewards.classifier import load_classifier

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=17, n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, pad="<pad>")
    reward = loaded(tmp_path)
    alone = torch.cat([reward([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(reward(PROMPTS, RESPONSES), alone, atol=1e-6, rtol=1e-5)
    assert load_classifier(BackboneConfig(pretrained=str(tmp_path)), ["LABEL_0"], 2)[0].config.pad_token_id == 2


def test_a_decoder_classifier_without_pad_token_scores_batches_as_it_scores_single_texts(tmp_path):
    from transformers import AutoModelForSequenceClassification, GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=17, n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    reward = loaded(tmp_path)
    together = reward(PROMPTS, RESPONSES)
    alone = torch.cat([reward([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_unknown_label_lists_the_labels(classifier_folder):
    with pytest.raises(ModelError, match="has no label 'toxicity'; its labels are: toxic, insult; set reward.label"):
        loaded(classifier_folder, label="toxicity")
    with pytest.raises(ModelError, match=r"has 2 labels; set reward\.label to one of: toxic, insult"):
        loaded(classifier_folder)


def test_a_language_model_is_no_classifier(tmp_path, capfd):
    causal_lm("gpt2").save_pretrained(save_policy(tmp_path / "lm"))
    capfd.readouterr()
    with pytest.raises(ModelError, match="no trained classification head"):
        loaded(tmp_path / "lm", label="LABEL_0")
    assert "LOAD REPORT" not in capfd.readouterr().err  # our line says it


def test_a_reward_must_be_loaded_first(classifier_folder):
    with pytest.raises(RewardError, match="not loaded"):
        ClassifierReward(str(classifier_folder), label="toxic")(PROMPTS, RESPONSES)


@pytest.mark.parametrize("module", ["length_reward"])
def test_any_function_is_a_reward(module):
    scores = CallableReward(f"tests.test_reward_models.{module}")(PROMPTS, RESPONSES)
    assert scores.tolist() == [22.0, 23.0, 13.0, 8.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_scores", r"returned shape \[2\]; expected \[4\], one score per response"),
        ("nan_scores", r"1 of 4 scores are not finite \(responses 0\)"),
        ("a_string", "returned a string; expected 4 numbers"),
        ("strings", "list that is no list of numbers"),
        ("nothing", "NoneType that is no list of numbers"),
    ],
)
def test_what_is_no_score_is_refused(name, message):
    reward = CallableReward(f"tests.test_reward_models.{name}")
    with pytest.raises(RewardError, match=message) as caught:
        reward(PROMPTS, RESPONSES)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def of_responses(responses: list[str]) -> list[float]:
    return [1.0] * len(responses)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("length_reward", "expected an import path"),
        ("no.such.module.reward", "cannot be imported"),
        ("tests.test_reward_models.missing", "cannot be imported"),
        ("tests.test_reward_models.PROMPTS", "is a list, not a callable"),
        (
            "tests.test_reward_models.of_responses",
            r"takes \(responses\), expected \(prompts, responses\): too many",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(path, message):
    with pytest.raises(RewardError, match=message):
        CallableReward(path)


def test_a_function_that_does_not_tell_its_arguments_is_taken_at_its_word():
    """As some that are written in C."""
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(max)
    CallableReward("builtins.max")


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [({"dtype": "bfloat16"}, 0.05), ({"dtype": "float16"}, 0.01), ({"load_in_8bit": True}, 0.05)],
)
def test_lower_precision_gives_nearly_the_same_scores(classifier_folder, precision, tolerance):
    """Tolerance in standard deviations of the scores; documented in docs/scale.md."""
    texts = [" ".join(WORDS[(row * 7 + word) % len(WORDS)] for word in range(2 + row % 9)) for row in range(64)]
    scores = []
    for settings in ({}, precision):
        reward = ClassifierReward(str(classifier_folder), label="toxic", **settings)
        reward.load(torch.device("cpu"))
        scores.append(reward(texts, [""] * len(texts)))
    spread = scores[0].std().item()
    assert 0 < (scores[0] - scores[1]).abs().max().item() < tolerance * spread


def test_the_classification_head_is_not_quantised(classifier_folder):
    reward = ClassifierReward(str(classifier_folder), label="toxic", load_in_8bit=True)
    reward.load(torch.device("cpu"))
    model = reward._loaded.model
    assert model.classifier.weight.dtype == torch.float32
    assert torch.int8 in {parameter.dtype for parameter in model.parameters()}
    assert reward.identity()["load_in_8bit"] is True


@pytest.mark.parametrize(
    ("own", "policys", "beside"),
    [
        (None, "cpu", False),
        ("cpu", "cpu", False),
        ("cpu", "cuda:0", True),
        (None, "cuda:0", True),
        ("cuda:1", "cpu", True),
        ("cuda", "cuda:0", True),
        (None, "mps:0", False),
        ("mps", "mps:0", False),
        ("cpu:0", "cpu", False),
        ("cpu", "mps:0", True),
    ],
)
def test_on_the_device_that_samples_it_scores_at_the_same_time_only_where_there_are_streams(own, policys, beside):
    assert ClassifierReward("any", device=own).works_beside(torch.device(policys)) == beside
    assert CallableReward(f"{__name__}.length_reward").works_beside(torch.device(policys))


def test_its_device_is_the_users_choice_whatever_the_policys(classifier_folder):
    reward = ClassifierReward(str(classifier_folder), label="toxic", device="cpu")
    reward.load(torch.device("meta"))  # the policy's
    assert reward(["a film"], [" was good"]).device.type == "cpu"
    with pytest.raises(RewardError, match=r"reward\.device=cuda:99: not on this machine"):
        ClassifierReward(str(classifier_folder), device="cuda:99", label="toxic").load(torch.device("cpu"))
    with pytest.raises(RewardError, match=r"reward\.device=gpu: not a device"):
        ClassifierReward(str(classifier_folder), device="gpu")
