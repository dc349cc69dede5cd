from __future__ import annotations

import logging

import pytest
import torch

from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.compiled import CompiledLayers, compiling_pays, decoder_layers

TOKENS = 128


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox", "gpt2"])
def test_the_layers_are_found(family, small_model):
    model = small_model(family)
    assert len(decoder_layers(CausalLM(model).body)) == model.config.num_hidden_layers


def test_compiling_pays_from_a_size_on_that_model_and_pool_alone_decide(small_model):
    config = small_model("llama").config
    flop_a_token = 2 * 12 * config.num_hidden_layers * config.hidden_size**2
    enough = -(-(10**16) // flop_a_token)
    assert compiling_pays(config, "cuda", enough)
    assert not compiling_pays(config, "cuda", enough - 1)
    assert not compiling_pays(config, "cuda", 0)
    assert not compiling_pays(config, "cpu", 1000 * enough)


def measured(causal_lm: CausalLM, pack, policy: str) -> torch.Tensor:
    with torch.no_grad(), causal_lm.precision(policy):
        return causal_lm.measures(*pack, ("loss",))["loss"]


class Recorded(CompiledLayers):
    """Which packs ran compiled; the layers themselves stay as they are."""

    packs = 0

    def __init__(self, body, tokens) -> None:
        super().__init__(body, tokens)
        self._compiled = [layer.forward for layer in self._layers]

    def running(self):
        Recorded.packs += 1
        return super().running()


def test_packs_are_filled_up_and_others_run_as_they_are(small_model, pack, monkeypatch):
    monkeypatch.setattr("tokenclean.models.causal_lm.CompiledLayers", Recorded)
    monkeypatch.setattr(Recorded, "packs", 0)
    causal_lm = CausalLM(small_model("llama"))
    expected = measured(causal_lm, pack, "exact")
    tokens = len(pack[0])
    for budget, runs_compiled in [(tokens, True), (tokens + 30, True), (2 * tokens + 2, False), (tokens - 1, False)]:
        causal_lm._compiled = None
        with torch.no_grad(), causal_lm.precision("exact"):
            causal_lm.compile_layers(max(budget, 80))
            before = Recorded.packs
            found = causal_lm.measures(*pack, ("loss",))["loss"]
        assert Recorded.packs - before == runs_compiled
        assert f"layers compiled at {max(budget, 80)} tokens" in causal_lm.kernel
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert all("forward" not in vars(layer) for layer in decoder_layers(causal_lm.body))


def test_a_later_probe_is_of_the_layers_as_they_are(small_model, monkeypatch):
    monkeypatch.setattr("tokenclean.models.causal_lm.CompiledLayers", Recorded)
    causal_lm = CausalLM(small_model("mistral", sliding_window=100), longest_row=90)
    with torch.no_grad(), causal_lm.precision("exact"):
        causal_lm.compile_layers(TOKENS)
    compiled = causal_lm._compiled
    before = Recorded.packs
    causal_lm.expect_rows_of(150)
    assert causal_lm.probed_window == 100
    assert Recorded.packs == before
    assert causal_lm._compiled is compiled is not None


def test_layers_that_do_not_compile_or_compile_wrongly_run_as_they_are(small_model, pack, monkeypatch, caplog):
    def failing(function, **options):
        def fail(*given, **named):
            raise RuntimeError("no compiler")

        return fail

    def wrong(function, **options):
        return lambda *given, **named: function(*given, **named) * 0

    expected = measured(CausalLM(small_model("llama")), pack, "exact")
    for compiler, reason in ((failing, "no compiler"), (wrong, "its losses differ")):
        monkeypatch.setattr(torch, "compile", compiler)
        causal_lm = CausalLM(small_model("llama"))
        caplog.clear()
        with torch.no_grad(), causal_lm.precision("exact"), caplog.at_level(logging.WARNING, logger="tokenclean"):
            causal_lm.compile_layers(TOKENS)
            found = causal_lm.measures(*pack, ("loss",))["loss"]
        assert reason in caplog.text
        assert "compiled" not in causal_lm.kernel
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["exact", "safe"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "neox"])
def test_compiled_layers_give_the_losses_of_the_plain_ones(family, policy, small_model, pack):
    causal_lm = CausalLM(small_model(family))
    expected = measured(causal_lm, pack, policy)
    with torch.no_grad(), causal_lm.precision(policy):
        causal_lm.compile_layers(max(len(pack[0]), 80))
    assert "layers compiled" in causal_lm.kernel
    error = (measured(causal_lm, pack, policy) - expected).abs()
    assert float(error.max()) < (1e-4 if policy == "exact" else 0.2)
    assert float(error.mean()) < (1e-5 if policy == "exact" else 0.02)
