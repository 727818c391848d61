from __future__ import annotations

import pytest

from lightning_rarlhf.errors import DataError, ModelError
from lightning_rarlhf.loading.hub import require_model, require_reachable_dataset
from tests.tiny_models import save_policy


def test_a_model_folder_passes(tmp_path):
    require_model(str(save_policy(tmp_path / "policy")))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file; give a folder"):
        require_model(str(tmp_path / "model.bin"))


def test_a_hub_that_cannot_be_reached_is_named_with_the_way_out(monkeypatch):
    import huggingface_hub

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refused)
    with pytest.raises(ModelError, match="hub cannot be reached .*name or service not known.*local folder"):
        require_model("someone/model")
    with pytest.raises(DataError, match=r"hub cannot be reached.*--data\.path FOLDER"):
        require_reachable_dataset("someone/data")


def test_a_hub_that_answers_is_enough(monkeypatch):
    import huggingface_hub

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", lambda self, name, repo_type, **_: asked.append((name, repo_type))
    )
    require_model("someone/model")
    require_reachable_dataset("someone/data")
    assert asked == [("someone/model", "model"), ("someone/data", "dataset")]
