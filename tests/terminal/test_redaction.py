from __future__ import annotations

import pytest
import yaml

from lightning_rarlhf.terminal.redaction import REDACTED, is_secret, redacted, redacted_text, redacted_yaml

HUB_TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "HF_TOKEN", "auth-token", "api_key", "apikey", "wandb_api_key", "secret", "password"]
)
def test_names_of_secrets(key):
    assert is_secret(key)
    assert redacted({"a": [{key: "x", "b": 1}]}) == {"a": [{key: REDACTED, "b": 1}]}


@pytest.mark.parametrize(
    "key", ["eos_token", "pad_token", "eos_token_id", "max_new_tokens", "tokens", "tokenizer", "key", "reward_token"]
)
def test_names_of_ordinary_settings(key):
    assert not is_secret(key)
    assert redacted({key: "x"}) == {key: "x"}


def test_a_secret_that_is_not_set_stays_none():
    assert redacted({"token": None}) == {"token": None}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pass@host/a.csv", f"https://{REDACTED}@host/a.csv"),
        ("s3://key:pa/ss@bucket", "s3://key:pa/ss@bucket"),  # no address: a slash ends the host
        (f"git clone https://{HUB_TOKEN}@huggingface.co/x", f"git clone https://{REDACTED}@huggingface.co/x"),
        (f"x {HUB_TOKEN} y", f"x {REDACTED} y"),
        ("https://h/x?token=abc&y=1", f"https://h/x?token={REDACTED}&y=1"),
        ("https://h/x?X-Amz-Signature=0a9f", f"https://h/x?X-Amz-Signature={REDACTED}"),
        ("someone@example.org", "someone@example.org"),
        ("runs/hf_model/seed_1", "runs/hf_model/seed_1"),
    ],
)
def test_texts(text, clean):
    assert redacted_text(text) == clean


def test_the_environments_secrets_are_known(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-of-a-known-shape")
    assert redacted_text("a=not-of-a-known-shape") == f"a={REDACTED}"


def test_yaml_keeps_its_form_and_reads_back():
    text = f"""\
# a comment
model:
  init_args:
    api_key: abc   # not for you
    'hf_token': "def"
    eos_token: <eos>
    token: null
    url: https://u:p@h/x
    headers:
    - authorization: Bearer {HUB_TOKEN}
"""
    content = yaml.safe_load(redacted_yaml(text))["model"]["init_args"]
    assert content == {
        "api_key": REDACTED,
        "hf_token": REDACTED,
        "eos_token": "<eos>",
        "token": None,
        "url": f"https://{REDACTED}@h/x",
        "headers": [{"authorization": REDACTED}],
    }
    assert redacted_yaml(text).startswith("# a comment\n")


def test_secrets_of_several_lines_are_taken_out_of_yaml():
    words = "correct horse battery staple " * 8
    settings = {
        "api_key": ["first", {"second": "third"}],
        "password": words,
        "note": f"{words}https://user:{'x' * 60}@host {words}",
        "prompt": "two\nlines",
        "lr": 1e-5,
    }
    text = yaml.safe_dump(settings)
    content = yaml.safe_load(redacted_yaml(text))
    note = f"{words}https://{REDACTED}@host {words}"
    assert content == settings | {"api_key": REDACTED, "password": REDACTED, "note": note}


def test_yaml_that_cannot_be_read_is_not_shown():
    assert redacted_yaml("api_key: [") == REDACTED
    assert redacted_yaml("") == ""
