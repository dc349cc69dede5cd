from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from tokenclean.errors import InputError, RunError, RunFolderError
from tokenclean.exporting import push_folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    made: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> str:
            made.append(("create_repo", {"repo_id": repo_id, **options}))
            return f"https://huggingface.co/datasets/{repo_id}"

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            made.append(("upload_folder", options))
            return SimpleNamespace()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return made


def test_a_folder_goes_into_a_data_set_repository(calls: list, tmp_path: Path) -> None:
    url = push_folder(tmp_path, "user/rows", private=True)
    assert url == "https://huggingface.co/datasets/user/rows"
    (_, create), (_, upload) = calls
    assert create == {"repo_id": "user/rows", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert (upload["repo_id"], upload["repo_type"], upload["folder_path"]) == ("user/rows", "dataset", tmp_path)
    assert "token" not in create | upload


def refusal(status: int) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    return HfHubHTTPError("refused hf_secret", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(401), "the Hub answered 401; set HF_TOKEN"),
        (refusal(503), "the Hub answered 503; try again"),
        (LocalTokenNotFoundError("hf_secret"), "no token; set HF_TOKEN"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (httpx2.ConnectError("Connection refused"), "cannot be reached"),
    ],
)
def test_a_refusal_becomes_one_clear_error_without_the_token(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(RunError, match=message) as caught:
        push_folder(tmp_path, "user/rows", private=False)
    assert "hf_secret" not in str(caught.value)


def test_a_name_that_is_none_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'not//a name' is not the name of a Hub repository"):
        push_folder(tmp_path, "not//a name", private=False)
    with pytest.raises(RunFolderError, match="absent: no such folder"):
        push_folder(tmp_path / "absent", "user/rows", private=False)
