"""Models by Hub id: from a mirror on this machine, from the cache, and with no Hub to be reached."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from tokenclean.errors import ModelError
from tokenclean.models.loading.hub_models import find_file, hub_options, list_files
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer, resolve_source, source_fingerprint

COMMIT = "0123456789" * 4
CLOSED = "http://127.0.0.1:9"  # nothing listens there


class Mirror(BaseHTTPRequestHandler):
    """As much of the Hub as serves the folders ``root/org/name`` at one commit; ``asked`` holds each request's path."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0].strip("/")
        repository = "/".join(path.removeprefix("api/models/").split("/")[:2])
        folder = self.root / repository
        if path == "":
            self.answer(404, b"a mirror need not serve its root")
        elif not folder.is_dir():
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            files = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"} for p in folder.iterdir()]
            self.answer(200, json.dumps(files).encode())
        elif path.startswith("api/models/"):
            self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode())
        elif (file := folder / path.rpartition("/")[2]).is_file():
            content = file.read_bytes()
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``HF_ENDPOINT`` does at import."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)


@pytest.fixture
def online(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def unreachable(online, monkeypatch) -> None:
    use_endpoint(CLOSED, monkeypatch)


@pytest.fixture
def mirror(online, tmp_path, monkeypatch, tiny_model_folder) -> Iterator[type[Mirror]]:
    """A mirror that serves ``org/model``."""
    handler = type("Serving", (Mirror,), {"root": tmp_path / "mirror", "asked": []})
    shutil.copytree(tiny_model_folder, handler.root / "org" / "model")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use_endpoint(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_that_cannot_be_reached_is_told_at_once(unreachable):
    began = time.monotonic()
    with pytest.raises(ModelError, match=rf"model 'org/model' .* cannot reach {CLOSED} .*; connect, or name a folder"):
        load_model("org/model")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="cannot load the model 'org/model'"):
            load(ModelSource("org/model"))
    assert time.monotonic() - began < 5


def test_the_password_of_a_mirror_is_not_told(online, monkeypatch):
    use_endpoint("http://me:password@127.0.0.1:9", monkeypatch)
    with pytest.raises(ModelError, match=r"cannot reach http://…@127.0.0.1:9"):
        resolve_source("org/model")


def test_offline_the_hub_is_not_asked(mirror, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        load_model("org/model")
    assert mirror.asked == []


def test_a_folder_is_loaded_without_the_hub(mirror, tiny_model_folder):
    load_model(str(tiny_model_folder))
    load_tokenizer(str(tiny_model_folder))
    assert mirror.asked == []


def test_a_mirror_serves_models_and_the_cache_keeps_them(mirror, monkeypatch):
    source = resolve_source("org/model")
    assert source == ModelSource("org/model")
    sizes = load_model(source).num_parameters(), len(load_tokenizer(source))
    kept = source_fingerprint(source)

    use_endpoint(CLOSED, monkeypatch)
    began = time.monotonic()
    assert resolve_source("org/model") == source
    assert (load_model(source).num_parameters(), len(load_tokenizer(source))) == sizes
    assert source_fingerprint(source) == kept
    assert time.monotonic() - began < 5


def test_files_fetched_by_other_tools_need_no_hub(unreachable, tmp_path, tiny_model_folder):
    """Their cache does not say which files the model lacks; each would be tried for 23 s."""
    cached = tmp_path / "cache" / "models--org--model"
    shutil.copytree(tiny_model_folder, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    began = time.monotonic()
    assert len(load_tokenizer("org/model")) == load_model("org/model").config.vocab_size
    assert time.monotonic() - began < 5


def test_what_the_hub_does_not_have_is_refused(mirror):
    (mirror.root / "org" / "empty").mkdir()
    with pytest.raises(ModelError, match=r"org/empty: holds neither config.json"):
        resolve_source("org/empty")
    with pytest.raises(ModelError, match=r"cannot load the model 'org/nobody' .*404"):
        resolve_source("org/nobody")


def test_an_adapter_is_fetched_with_its_base(mirror, tiny_model_folder):
    options = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(str(tiny_model_folder)), options)
    folder = mirror.root / "org" / "adapter"
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/model"}))
    source = resolve_source("org/adapter")
    assert source == ModelSource("org/model", "org/adapter")
    loaded = load_model(source)
    assert isinstance(loaded, PeftModel)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor)


def test_pickles_are_not_even_fetched_from_the_hub(mirror):
    folder = mirror.root / "org" / "model"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="its repository holds no weights"):
        load_model("org/model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps("code"))
    with pytest.raises(
        ModelError, match=r"M.from_pretrained\(n, revision='v1'\).save_pretrained\(o\); T.from"
    ) as found:
        load_model(ModelSource("org/model", revision="v1"))
    assert "n, o = 'org/model', 'model-safetensors'" in str(found.value)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps("code"))
    assert not [path for path in mirror.asked if path.endswith(".bin")]


def test_a_pickled_adapter_is_not_fetched_from_the_hub(mirror):
    folder = mirror.root / "org" / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps("code"))
    with pytest.raises(ModelError, match=r"snapshot_download as d; n = d\(n, local_dir=o\)"):
        load_model("org/adapter")
    assert not [path for path in mirror.asked if path.endswith(".bin")]


def test_files_are_found_in_folders_and_repositories(mirror, tiny_model_folder):
    for name in (str(tiny_model_folder), "org/model"):
        options = hub_options(name, None)
        assert list_files(name, options) == sorted(p.name for p in tiny_model_folder.iterdir())
        found = find_file(name, "config.json", options)
        assert found is not None
        assert found.read_bytes() == (tiny_model_folder / "config.json").read_bytes()
        assert find_file(name, "missing.json", options) is None
