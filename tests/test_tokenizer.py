from __future__ import annotations

import pytest

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.tokenizer import load_tokenizer
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
