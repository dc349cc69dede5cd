"""``tokenclean score --reference-url``: the table, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_server import NAME, ModelServer
from tokenclean.token_table import read_table


@pytest.fixture
def server(other_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ModelServer(other_model_folder, "sglang").serving() as running:
        yield running


def test_a_table_with_a_served_reference(
    server, command, one_thread, small_pool, tiny_model_folder, other_model_folder, tmp_path
):
    base = ("score", small_pool, "--base", tiny_model_folder, "--device", "cpu", "--precision", "exact")
    served = (*base, "--reference", NAME, "--reference-url", server.url, "-o", tmp_path / "served.parquet")
    said = command(*served)
    assert said.code == 0, said.err
    assert "asked in the form sglang" in said.err
    assert command(*base, "--reference", other_model_folder, "-o", tmp_path / "here.parquet").code == 0
    tables = [read_table(tmp_path / f"{name}.parquet") for name in ("served", "here")]
    np.testing.assert_allclose(*(table["score"].values for table in tables), atol=1e-4)
    metadata = tables[0].metadata
    assert metadata["policy"]["precision"] == "exact"
    assert metadata["served_policy"]["api"] == "sglang"
    assert metadata["models"]["reference"]["name"] == NAME
    asked = len(server.requests)
    assert "found in" in command(*served).out
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--reference", NAME), "--precision exact"),
        (("--precision", "exact"), "give the model's name on the server with --reference"),
        (("--reference", NAME, "--precision", "exact", "--columns", "entropy"), "a server gives losses only"),
        (("--reference", NAME, "--precision", "exact", "--key-variable", "sk-secret"), "name of an environment"),
    ],
)
def test_what_is_refused(options, words, command, small_pool, tiny_model_folder, tmp_path):
    target = ("--reference-url", "http://host/v1", "-o", tmp_path / "t.parquet")
    said = command("score", small_pool, "--base", tiny_model_folder, *target, *options)
    assert said.code == 2
    assert words in " ".join(said.err.split())
    assert "sk-secret" not in said.err


def test_server_options_need_a_server(command, small_pool, tiny_model_folder, tmp_path):
    said = command("score", small_pool, "--base", tiny_model_folder, "--align", "characters")
    assert said.code == 2
    assert "--align: for a served reference only" in " ".join(said.err.split())
