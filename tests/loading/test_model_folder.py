from __future__ import annotations

import pytest

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.loading.model_folder import require_replaceable


@pytest.mark.parametrize("files", [[], ["config.json", "model.safetensors"], ["adapter_config.json"]])
def test_a_saved_model_and_an_empty_folder_may_be_replaced(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    require_replaceable(tmp_path)
    require_replaceable(tmp_path / "not there")


def test_a_saved_model_may_have_chat_templates(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "additional_chat_templates").mkdir()
    require_replaceable(tmp_path)


@pytest.mark.parametrize("stranger", ["notes.txt", "checkpoints/last.ckpt", "gpt2/config.json"])
def test_a_folder_of_other_things_may_not_be_replaced_by_a_model(tmp_path, stranger):
    place = tmp_path / stranger
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    with pytest.raises(UserError, match=rf"holds {stranger.split('/')[0]} and is no saved model's;.*name a new folder"):
        require_replaceable(tmp_path)


def test_a_model_that_is_still_needed_may_not_be_replaced(tmp_path, monkeypatch):
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(start)
    require_replaceable(start, None, "gpt2", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in (str(start), "start", str(tmp_path / "link")):
        with pytest.raises(UserError, match="start: the run starts from the model there"):
            require_replaceable(start, None, source)


def test_what_lies_in_a_models_folder_besides_is_not_given_up(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".git").mkdir()
    with pytest.raises(UserError, match=r"holds \.git and"):
        require_replaceable(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        require_replaceable(tmp_path / "config.json")
