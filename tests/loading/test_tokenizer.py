from __future__ import annotations

import json

import pytest

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.tokenizer import load_tokenizer, require_same_tokens
from tests.tiny_models import save_policy


def test_missing_pad_token_becomes_the_end_of_text_token(tmp_path):
    tokenizer = load_tokenizer(str(save_policy(tmp_path / "policy")))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert tokenizer.padding_side == "left"


def test_own_pad_token_is_kept(tmp_path):
    assert load_tokenizer(str(save_policy(tmp_path / "policy", pad="<pad>"))).pad_token_id == 2


@pytest.mark.parametrize(("pad", "missing"), [(None, "a pad token and an EOS token"), ("<pad>", "an EOS token")])
def test_tokenizer_without_eos_is_refused(tmp_path, pad, missing):
    with pytest.raises(ModelError, match=missing):
        load_tokenizer(str(save_policy(tmp_path / "policy", pad=pad, eos=None)))


def test_folder_without_tokenizer_is_refused(tmp_path):
    folder = save_policy(tmp_path / "policy")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer could be loaded") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


class Words:
    """Stands for a tokenizer of these words, ids from 0 on."""

    def __init__(self, *words):
        self.words, self.name_or_path = words, "policy"

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


def test_another_meaning_of_an_id_is_refused_and_a_token_more_on_request_only():
    ours = Words("a", "b", "c")
    require_same_tokens(ours, Words("a", "b", "c"), "reference x")
    for theirs in (Words("a", "b"), Words("a", "b", "c", "<pad>")):
        require_same_tokens(ours, theirs, "reference x", may_lack=True)
        with pytest.raises(ModelError, match=r"expert x: its tokenizer has . tokens, .*policy 3, .*first at '.*' \(id"):
            require_same_tokens(ours, theirs, "expert x")
    with pytest.raises(ModelError, match=r"first at 'B' \(id 1\)"):
        require_same_tokens(ours, Words("a", "B", "c", "d"), "reference x", may_lack=True)


def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path):
    """Here a merge of tokens that there are not, about which its library raises no class of its own."""
    save_policy(tmp_path, "qwen2")
    path = tmp_path / "tokenizer.json"
    damaged = json.loads(path.read_text())
    damaged["model"]["merges"] = [["no", "where"]]
    path.write_text(json.dumps(damaged))
    with pytest.raises(ModelError, match=r"not a folder with a tokenizer that transformers can load \(.*out of vocab"):
        load_tokenizer(str(tmp_path))
