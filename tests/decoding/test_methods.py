"""Every method: with its effect switched off it is the policy to the token; it costs and weighs what it says."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lightning_rarlhf.decoding.best_of_k import BestOfK
from lightning_rarlhf.decoding.dexperts import DExperts
from lightning_rarlhf.decoding.gedi import GeDi
from lightning_rarlhf.decoding.method import DecodingMethod
from lightning_rarlhf.decoding.plain import Plain
from lightning_rarlhf.decoding.prompted import Prompted
from lightning_rarlhf.decoding.self_debias import SelfDebias
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.sampling import SamplingSeed
from tests.decoding.hosts import drawn, host_of, length_score, save_expert
from tests.test_sampling import PROMPTS, batch_of
from tests.tiny_models import FAMILIES, causal_lm, save_policy


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("experts")
    return {name: str(save_expert(root / name, seed)) for seed, name in enumerate(("expert", "anti"))}


def methods_of(experts: dict[str, str]) -> dict[str, DecodingMethod]:
    codes = {"wanted_code": "good", "unwanted_code": "bad"}
    return {
        "plain": Plain(),
        "prompted": Prompted("a very kind film"),
        "dexperts": DExperts(experts["expert"], experts["anti"]),
        "dexperts, expert alone": DExperts(expert=experts["expert"]),
        "dexperts, anti-expert alone": DExperts(anti_expert=experts["anti"]),
        "gedi": GeDi(experts["expert"], **codes),
        "self-debias": SelfDebias(["a very rude film", "bad food"]),
        "best of 4": BestOfK(4),
    }


NAMES = list(methods_of({"expert": "", "anti": ""}))
PASSES = dict(zip(NAMES, (1, 1, 3, 2, 2, 3, 3, 4), strict=True))


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_it_takes_the_passes_it_states(self, policy_folder, experts, name):
        method = methods_of(experts)[name]
        drawn(method, host_of(policy_folder))
        method.draw(batch_of(PROMPTS[:2]), SamplingSeed(base=9))
        assert method.forward_passes_per_token == PASSES[name]
        assert method.passes.per_token == PASSES[name]
        assert method.identity()["measured_forward_passes_per_token"] == PASSES[name]

    def test_a_response_depends_on_its_prompt_alone(self, policy_folder, experts, name):
        """Not on padding, neighbours or batch size; the first prompt is the longest, the others are padded."""
        method = methods_of(experts)[name]
        together = drawn(method, host_of(policy_folder))
        for row, prompt in enumerate(PROMPTS):
            alone = method.draw(batch_of([prompt], index=[row]), SamplingSeed(base=5))
            assert alone.responses[0] == together.responses[row]
            assert together.logprobs is not None
            assert alone.logprobs is not None
            width = int(alone.lengths[0])
            torch.testing.assert_close(alone.logprobs[0, :width], together.logprobs[row, :width], atol=1e-4, rtol=0)

    def test_rows_that_have_ended_change_nothing(self, policy_folder, experts, name):
        """Every sixth or so of the tokens that it draws ends a text, so rows are left out more than once."""
        method, host, prompts = methods_of(experts)[name], host_of(policy_folder, max_new_tokens=16), PROMPTS * 4
        free = drawn(method, host, prompts=prompts)
        tokens, counts = free.sequences[:, -free.response_mask.shape[1] :][free.response_mask].unique(
            return_counts=True
        )
        rarest = counts.argsort()
        host.policy.eos_token_ids = tokens[rarest][counts[rarest].cumsum(0) <= counts.sum() / 6]
        together = drawn(method, host, prompts=prompts)
        assert together.logprobs is not None
        assert len(set(together.lengths.tolist())) > 3
        for row, prompt in enumerate(prompts):
            alone = method.draw(batch_of([prompt], index=[row]), SamplingSeed(base=5))
            assert alone.responses[0] == together.responses[row]
            assert alone.logprobs is not None
            width = int(alone.lengths[0])
            torch.testing.assert_close(alone.logprobs[0, :width], together.logprobs[row, :width], atol=1e-4, rtol=0)

    def test_the_minimum_length_holds(self, policy_folder, experts, name):
        host = host_of(policy_folder, min_new_tokens=6, max_new_tokens=6)
        samples = drawn(methods_of(experts)[name], host)
        assert samples.lengths.tolist() == [6, 6, 6]
        assert samples.logprobs is not None
        assert torch.isfinite(samples.logprobs).all()
        eos = host.policy.eos_token_ids
        assert not torch.isin(samples.sequences[:, -6:-1], eos).any()


def same(left, right) -> None:
    assert left.sequences.tolist() == right.sequences.tolist()
    assert left.logprobs.tolist() == right.logprobs.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_dexperts_whose_experts_agree_is_the_filtered_policy(policy_folders, family):
    folder = str(policy_folders[family])
    base = drawn(Plain(), host_of(policy_folders[family], top_p=0.9))
    same(drawn(DExperts(folder, folder), host_of(policy_folders[family])), base)
    same(drawn(DExperts(expert=folder), host_of(policy_folders[family])), base)


@pytest.mark.parametrize("filter_p", [0.9, 1.0])
def test_dexperts_of_weight_0_is_the_filtered_policy(policy_folder, experts, filter_p):
    method = DExperts(experts["expert"], experts["anti"], alpha=0.0, filter_p=filter_p)
    same(drawn(method, host_of(policy_folder)), drawn(Plain(), host_of(policy_folder, top_p=filter_p)))


def test_dexperts_draws_from_the_product_of_experts(policy_folder, experts):
    """Against uncached logits of the three models, token by token; the policy stands in for a missing expert."""
    host = host_of(policy_folder)
    for names in (("expert", "anti"), ("expert",), ("anti",)):
        arguments = {"expert": None, "anti_expert": None} | {
            {"expert": "expert", "anti": "anti_expert"}[name]: experts[name] for name in names
        }
        method = DExperts(**arguments, alpha=1.5)
        samples = drawn(method, host)
        models = {role: method._experts.get(role, host.policy).lm for role in ("expert", "anti_expert")}
        for row, prompt in enumerate(PROMPTS):
            text = torch.tensor([prompt + samples.sequences[row, 5:].tolist()])
            base, expert, anti = (m(text).logits[0] for m in (host.policy.lm, models["expert"], models["anti_expert"]))
            for step in range(int(samples.lengths[row])):
                at = len(prompt) - 1 + step
                ordered = base[at].softmax(-1).sort(descending=True)
                outside = ordered.indices[(ordered.values.cumsum(0) - ordered.values) >= 0.9]
                joint = base[at] + 1.5 * (expert[at] - anti[at])
                joint[outside] = -torch.inf
                expected = joint.log_softmax(-1)[text[0, at + 1]]
                torch.testing.assert_close(samples.logprobs[row, step], expected.detach(), atol=1e-4, rtol=0)


def test_gedi_of_weight_0_is_the_policy(policy_folder, experts):
    method = GeDi(experts["expert"], "good", "bad", omega=0.0, rho=1.0)
    same(drawn(method, host_of(policy_folder)), drawn(Plain(), host_of(policy_folder)))


def test_gedi_weighs_by_the_length_normalised_posterior_of_the_whole_text(policy_folder, experts):
    host = host_of(policy_folder)
    method = GeDi(experts["expert"], "good film", "bad", omega=3.0, rho=1.0)
    samples = drawn(method, host)
    tokenizer, lm = host.tokenizer, method._model.lm
    codes = [tokenizer(code)["input_ids"] for code in ("good film", "bad")]
    for row, prompt in enumerate(PROMPTS):
        text = prompt + samples.sequences[row, 5:].tolist()
        base = host.policy.lm(torch.tensor([text])).logits[0]
        said = [lm(torch.tensor([code + text])).logits[0, len(code) - 1 :].log_softmax(-1) for code in codes]
        for step in range(int(samples.lengths[row])):
            at = len(prompt) + step  # tokens so far
            past = [sum(each[j, text[j]] for j in range(at)) for each in said]
            joint = torch.stack([before + each[at] for before, each in zip(past, said, strict=True)]) / (at + 1)
            expected = (base[at - 1] + 3.0 * joint.log_softmax(0)[0]).log_softmax(-1)[text[at]]
            torch.testing.assert_close(samples.logprobs[row, step], expected.detach(), atol=1e-4, rtol=0)


def test_gedi_counts_no_token_that_opens_every_text(tmp_path, experts):
    from tokenizers.processors import TemplateProcessing

    host = host_of(save_policy(tmp_path))
    host.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    method = GeDi(experts["expert"], "good film", "bad", omega=3.0, rho=1.0)
    drawn(method, host, prompts=[[1, *prompt] for prompt in PROMPTS])
    decoder, ids = method.decoder(), torch.tensor([[1, 5, 6, 7], [1, 8, 9, 5]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 0], ids[1, 1] = False, 1  # a padded row
    with torch.no_grad():
        decoder.start(ids, mask)
        assert decoder._tokens.tolist() == [4, 3]  # with the next token, without the one that opens
        decoder.advance(torch.tensor([5, 6]), torch.cat([mask, torch.ones(2, 1, dtype=torch.bool)], dim=1))
    assert decoder._tokens.tolist() == [5, 4]


def test_gedi_refuses_codes_that_the_tokenizer_does_not_tell_apart(policy_folder, experts):
    with pytest.raises(
        ModelError, match=r"GeDi: 'lovely' and 'awful' are the tokens \[0\] and \[0\] of .*, which do not"
    ):
        GeDi(experts["expert"], "lovely", "awful").load(host_of(policy_folder))


def test_self_debias_of_decay_0_is_the_policy(policy_folder):
    method = SelfDebias(["a rude film"], decay=0.0)
    same(drawn(method, host_of(policy_folder)), drawn(Plain(), host_of(policy_folder)))


def test_self_debias_compares_with_the_instructed_policy(policy_folder):
    host = host_of(policy_folder)
    samples = drawn(SelfDebias(["a very rude film"], separator=""), host)
    instruction = host.tokenizer("a very rude film")["input_ids"]
    for row, prompt in enumerate(PROMPTS):
        text = prompt + samples.sequences[row, 5:].tolist()
        base = host.policy.lm(torch.tensor([text])).logits[0, len(prompt) - 1 :].softmax(-1)
        biased = host.policy.lm(torch.tensor([instruction + text])).logits[0, len(instruction + prompt) - 1 :]
        weights = base * (50 * (base - biased.softmax(-1)).clamp(max=0)).exp().clamp(min=0.01)
        expected = (weights / weights.sum(-1, keepdim=True)).log()
        for step in range(int(samples.lengths[row])):
            got = samples.logprobs[row, step]
            torch.testing.assert_close(got, expected[step, text[len(prompt) + step]].detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_instruction_is_read_before_the_prompt_and_not_part_of_the_text(policy_folders, family):
    host = host_of(policy_folders[family])
    method = Prompted("a kind film", separator=" the")
    samples = drawn(method, host)
    instruction = host.tokenizer("a kind film the", add_special_tokens=False)["input_ids"]
    assert method.prefix_tokens == len(instruction)
    plain = drawn(Plain(), host, prompts=[instruction + prompt for prompt in PROMPTS])
    assert samples.responses == plain.responses
    torch.testing.assert_close(samples.logprobs, plain.logprobs, atol=1e-5, rtol=0)
    assert samples.batch.input_ids.tolist() == batch_of(PROMPTS).input_ids.tolist()


def test_an_opening_token_stands_before_the_instruction_alone(tmp_path):
    from tokenizers.processors import TemplateProcessing

    host = host_of(save_policy(tmp_path))
    host.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    opened = drawn(Prompted("a kind film", separator=""), host, prompts=[[1, *prompt] for prompt in PROMPTS])
    instruction = host.tokenizer("a kind film")["input_ids"]
    assert instruction[0] == 1
    plain = drawn(Plain(), host, prompts=[instruction + prompt for prompt in PROMPTS])
    assert opened.responses == plain.responses


CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}the {% endif %}"
)


def test_a_chat_template_holds_the_instruction_and_the_prompt_opens_the_answer(policy_folder):
    host = host_of(policy_folder)
    host.tokenizer.chat_template = CHAT
    method = Prompted("a kind film")
    samples = drawn(method, host)
    before = host.tokenizer("user : a kind film the ", add_special_tokens=False)["input_ids"]
    plain = drawn(Plain(), host, prompts=[before + prompt for prompt in PROMPTS])
    assert samples.responses == plain.responses
    never = Prompted("a kind film", chat="never")
    never.load(host)
    assert never.prefix_tokens < method.prefix_tokens
    assert [each.settings()["chat_template_used"] for each in (method, never)] == [True, False]


@pytest.mark.parametrize(
    ("template", "complaint"), [(None, "no chat template"), ("{{ raise_exception('no user') }}", "fails .*no user")]
)
def test_a_chat_template_that_is_missing_or_fails_is_named(policy_folder, template, complaint):
    host = host_of(policy_folder)
    host.tokenizer.chat_template = template
    with pytest.raises(ModelError, match=complaint):
        Prompted("a kind film", chat="always").load(host)


def test_best_of_k_keeps_the_best_of_the_very_draws(policy_folder):
    host = host_of(policy_folder)
    best = drawn(BestOfK(4), host, draw=2)
    draws = [drawn(Plain(), host, draw=8 + number) for number in range(4)]
    scores = torch.stack([length_score(samples) for samples in draws])
    assert length_score(best).tolist() == scores.max(dim=0).values.tolist()
    assert length_score(best).mean() > scores.mean()
    for row, number in enumerate(scores.argmax(dim=0).tolist()):
        count = int(best.lengths[row])
        assert best.responses[row] == draws[number].responses[row]
        assert best.sequences[row, : 5 + count].tolist() == draws[number].sequences[row, : 5 + count].tolist()
        assert best.logprobs[row, :count].tolist() == draws[number].logprobs[row, :count].tolist()


def test_best_of_1_is_the_policy(policy_folder):
    same(drawn(BestOfK(1), host_of(policy_folder)), drawn(Plain(), host_of(policy_folder)))


def test_the_best_of_many_draws_has_the_mean_of_the_exact_distribution(policy_folder):
    """E max of k = 3 draws, summed over all responses of one token, against the mean over 3,000 choices."""
    host = host_of(policy_folder, max_new_tokens=1)
    prompts = [PROMPTS[0]] * 1000
    got = torch.cat([length_score(drawn(BestOfK(3), host, draw=n, prompts=prompts)) for n in range(3)])
    probabilities = host.policy.lm(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).double().detach()
    decode = partial(host.tokenizer.decode, skip_special_tokens=True)
    texts = [decode([*PROMPTS[0], token])[len(decode(PROMPTS[0])) :] for token in range(len(probabilities))]
    scores = torch.tensor([float(sum(map(ord, text)) % 97) for text in texts], dtype=torch.float64)
    levels = scores.unique()
    below = torch.stack([probabilities[scores <= level].sum() for level in levels])
    at = below**3 - torch.cat([torch.zeros(1, dtype=torch.float64), below[:-1]]) ** 3
    expected, deviation = float((levels * at).sum()), float(got.std()) / len(got) ** 0.5
    assert abs(float(got.mean()) - expected) < 4 * deviation


def test_an_expert_of_another_vocabulary_is_named(policy_folder, tmp_path):
    other = save_policy(tmp_path / "other", pad="<another pad>")
    with pytest.raises(ModelError, match=r"anti_expert .*other: its tokenizer has 18 tokens, .* 17, .*'<another pad>'"):
        DExperts(expert=str(policy_folder), anti_expert=str(other)).load(host_of(policy_folder))
    wide = tmp_path / "wide"
    causal_lm("gpt2", vocabulary=24).save_pretrained(save_policy(wide))
    with pytest.raises(ModelError, match=r"class_lm .*wide: has logits for 24 tokens, the policy .* for 17"):
        GeDi(str(wide), "good", "bad").load(host_of(policy_folder))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: DExperts(), "neither model.method.expert nor"),
        (lambda: BestOfK(0), "k=0: expected 1 or more"),
        (lambda: SelfDebias([]), "instructions has no text"),
        (lambda: SelfDebias(["rude", " "]), "instructions has no text or an empty one"),
        (lambda: GeDi("x", "good", "good"), "expected two texts"),
        (lambda: GeDi("x", "good", ""), "unwanted_code ''; expected two texts"),
        (lambda: Prompted("  "), "instruction is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()
