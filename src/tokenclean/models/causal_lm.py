"""CausalLM: the only way in which this project computes losses with a transformer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from tokenclean.errors import ModelError
from tokenclean.models.attention.backend_choice import AttentionCall, select_kernel
from tokenclean.models.attention.segments import current_segments, segments
from tokenclean.models.compiled import CompiledLayers, decoder_layers
from tokenclean.models.cpu_contention import watch_contention
from tokenclean.models.head import Measures, head_of, measures_of_logits
from tokenclean.models.model_parts import (
    PROBE_LENGTHS,
    body_of,
    draw_sample,
    evaluating,
    find_problem,
    lm_of,
    smallest_window,
)
from tokenclean.models.pairs import can_pair, paired_loras
from tokenclean.models.precision import (
    CopyOfWeight,
    gives_float32,
    multiplies_bf16,
    precision_policy,
    uses_kernels,
    weight_copy,
)

logger = logging.getLogger(__name__)

_COMPILED_TOLERANCE_NATS = 0.05  # on average: under bf16 products another order of sums moves single losses further
_probed: dict[Hashable, tuple[bool, bool]] = {}  # structure of a model -> (is packed, has a head of its own)


class CausalLM:
    """A transformers causal LM, or the PEFT model around one, split into body and head.

    The first time that a process meets a model's structure, a small probe compares the packed pass and the separate
    head with the model's own logits. A way that does not reproduce them to 1e-3 nats is not used, and the log says so:
    the model then runs one conversation a pass, or its own output layer. Gradient checkpointing that the caller has
    switched on runs one conversation a pass too: it recomputes in the backward pass, where the packed attention is no
    longer set up. ``checkpoint_activations`` sets it up again there.

    ``longest_row``: tokens of the longest conversation to come; the probe reaches beyond a shorter sliding window.
    ``is_packed``: several conversations share one forward pass. ``probed_window``: the sliding window beyond which the
    probe has reached, in tokens; 0 for none.
    """

    def __init__(self, model: torch.nn.Module, *, longest_row: int = 0) -> None:
        self.model = model
        self.lm = lm_of(model)
        self.body = body_of(self.lm)
        self.is_packed = False
        self._has_head = False
        self._head_copy: CopyOfWeight | None = None
        self._refresh: Callable[[], None] = lambda: None
        self._compiled: CompiledLayers | None = None
        self._policy, self._allow_bf16, self._in_pairs = "exact", False, False
        self.probed_window = 0
        self._checkpoints_packs = False
        if self.device.type == "cpu":
            watch_contention()
        self._probe(smallest_window(self.lm, longest_row))

    @property
    def device(self) -> torch.device:
        """Where the model is now."""
        return next(self.lm.parameters()).device

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding matrix; the model knows only smaller ids."""
        return cast(torch.nn.Embedding, self.lm.get_input_embeddings()).weight.shape[0]

    @property
    def kernel(self) -> str:
        """A description of what computes the losses, recorded with them."""
        attention = self._attention_kernel() if self.is_packed else "one conversation a pass"
        head = "chunked head" if self._has_head else "the model's own head"
        if self._has_head and self._policy == "fast" and gives_float32(self.device):
            head += " in bf16"
        products = "block products" if uses_kernels(self.body) else "torch's products"
        if self._policy != "exact" and not multiplies_bf16(self.body):
            products += " in float32"
        compiled = "" if self._compiled is None else f"; layers compiled at {self._compiled.tokens} tokens"
        return f"{attention}; {head}; {products}{compiled}"

    @property
    def can_pair(self) -> bool:
        """Whether a block of ``precision`` can be ``in_pairs``."""
        return self.is_packed and self._has_head and can_pair(self.model)

    def _attention_kernel(self) -> str:
        config = self.lm.config
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // getattr(config, "num_attention_heads", 1)
        call = AttentionCall(
            self.device,
            next(self.body.parameters()).dtype,
            head_dim,
            head_dim,
            has_softcap=getattr(config, "attn_logit_softcapping", None) is not None,
            has_window=self.probed_window > 0,
            allow_bf16=self._allow_bf16,
        )
        return f"attention by {select_kernel(call)}"

    def expect_rows_of(self, longest_row: int) -> None:
        """Probe again where a conversation of so many tokens reaches beyond a sliding window not yet probed."""
        if (window := smallest_window(self.lm, longest_row)) != self.probed_window and window:
            compiled, self._compiled = self._compiled, None  # the probe runs the layers uncompiled
            self._probe(window)
            self._compiled = compiled if self.is_packed else None

    @contextmanager
    def precision(
        self, policy: str, *, with_kernels: bool = True, bf16_attention: bool = False, in_pairs: bool = False
    ) -> Iterator[None]:
        """Run a block under a precision policy (see ``models.precision``), with or without the CPU kernels.

        ``bf16_attention``: attention may round to bf16 as under ``fast``, whichever the policy. ``in_pairs``: measures
        are those of the base and of the adapter, P each, for a model that ``can_pair``.
        """
        copy = None
        if self._has_head and not torch.is_grad_enabled():
            packed = with_kernels and uses_kernels(self.body)
            if packed or (policy == "fast" and gives_float32(self.device)):
                copy = weight_copy(lambda: head_of(self.lm).weight, policy, packed=packed)
        before = self._head_copy, self._refresh, self._policy, self._allow_bf16, self._in_pairs
        products = precision_policy(self.body, policy, with_kernels=with_kernels, in_pairs=in_pairs)
        try:
            with products as self._refresh, paired_loras(self.body) if in_pairs else nullcontext():
                self._head_copy, self._policy, self._in_pairs = copy, policy, in_pairs
                self._allow_bf16 = policy == "fast" or bf16_attention
                yield
        finally:
            self._head_copy, self._refresh, self._policy, self._allow_bf16, self._in_pairs = before

    def make_copies(self) -> None:
        """Copy all weights of the ``precision`` block now, and not one by one when a layer first runs.

        Among the activations of a first pack the copies would cut the allocator's free memory into pieces that later
        packs cannot use: a pass then took half as much memory again.
        """
        self._refresh()
        if self._head_copy is not None:
            self._head_copy.refresh()

    def compile_layers(self, tokens: int) -> None:
        """Compile the layers for packs of up to ``tokens`` tokens, which are then padded to that number.

        Call it within the ``precision`` block that will be used, without gradient; compiling takes 20 seconds or more.
        Where it fails, or gives other losses than the uncompiled layers, the uncompiled layers stay in use and the log
        says so.
        """
        if not self.is_packed or not decoder_layers(self.body):
            logger.warning("%s runs uncompiled: it has no layers to compile", self._name)
            return
        ids, lengths, positions = self._sample([*PROBE_LENGTHS, max(2, tokens - sum(PROBE_LENGTHS))])
        expected = self.measures(ids, lengths, positions, ("loss",))["loss"]
        self._compiled = CompiledLayers(self.body, len(ids))
        try:
            found = self.measures(ids, lengths, positions, ("loss",))["loss"]
        except Exception as error:  # a compiler backend may raise anything
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            difference = float((found - expected).abs().mean())
            problem = "" if difference < _COMPILED_TOLERANCE_NATS else f"its losses differ by {difference:.3g} nats"
        if problem:
            logger.warning("the layers of %s run uncompiled; compiling them failed (%s)", self._name, problem)
            self._compiled = None

    def checkpoint_activations(self) -> None:
        """Keep only each layer's input for the backward pass, which computes the layer again, packed in the same way.

        Raises ModelError for a model that transformers cannot checkpoint.
        """
        if not self.lm.supports_gradient_checkpointing:
            raise ModelError(f"{self._name} cannot checkpoint its activations; leave activation_checkpointing out")
        enable = getattr(self.lm, "activation_checkpointing_enable", None)  # its name in newer transformers
        enable = enable or self.lm.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), current_segments(self.lm))})
        self._checkpoints_packs = True

    def losses(self, input_ids: Tensor, lengths: Sequence[int], positions: Tensor) -> Tensor:
        """NLL in nats of the tokens at ``positions``, float32, shape (P,); differentiable.

        ``input_ids``: int64 (T,), conversations of the given ``lengths`` one after another; ``positions``: int64 (P,),
        rising indices into it, none at the start of a conversation.
        """
        if self.is_packed and not self._is_recomputing():
            return self._pass(input_ids, lengths, positions)
        return torch.cat([self._pass(ids, None, inside) for ids, inside in _each(input_ids, lengths, positions)])

    def measures(self, input_ids: Tensor, lengths: Sequence[int], positions: Tensor, names: Sequence[str]) -> Measures:
        """The measures ``names`` (of ``head.MEASURES``) at ``positions``, each float32 (P,); without gradient.

        Other arguments as for ``losses``.
        """
        if self.is_packed:
            return self._measure(input_ids, lengths, positions, names)
        parts = [self._measure(ids, None, inside, names) for ids, inside in _each(input_ids, lengths, positions)]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def measures_of_hidden(self, hidden: Tensor, targets: Tensor, names: Sequence[str]) -> Measures:
        """The measures ``names`` of ``targets`` (P,) from last hidden states (P, H); without gradient."""
        copy = None if self._head_copy is None else self._head_copy()
        # Looked up each time: sharding replaces a layer's tensors for a while.
        return head_of(self.lm).measures(hidden, targets, names, copy, in_pairs=self._in_pairs)

    def last_loss(self, input_ids: Tensor) -> Tensor:
        """The loss of the last token of one conversation by the plain forward pass, (1,)."""
        return self._pass(input_ids, None, torch.tensor([len(input_ids) - 1]))

    def _is_recomputing(self) -> bool:
        if self._checkpoints_packs or not (self.lm.training and torch.is_grad_enabled()):
            return False
        return any(getattr(module, "gradient_checkpointing", False) for module in self.lm.modules())

    def _pass(self, input_ids: Tensor, lengths: Sequence[int] | None, positions: Tensor) -> Tensor:
        """Losses of one pack, or of one conversation by the plain forward (``lengths`` None)."""
        targets = input_ids[positions]
        if not self._has_head:
            return cross_entropy(self._own_logits(input_ids, positions), targets, reduction="none")
        return head_of(self.lm).losses(self._hidden(input_ids, lengths)[positions - 1], targets)

    def _measure(
        self, input_ids: Tensor, lengths: Sequence[int] | None, positions: Tensor, names: Sequence[str]
    ) -> Measures:
        targets = input_ids[positions]
        if not self._has_head:
            return measures_of_logits(self._own_logits(input_ids, positions), targets, names)
        if not self._in_pairs:
            return self.measures_of_hidden(self._hidden(input_ids, lengths)[positions - 1], targets, names)
        before = torch.cat([positions - 1, positions - 1 + len(input_ids)])
        return self.measures_of_hidden(self._hidden(input_ids, lengths)[before], targets, names)

    def _own_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits for ``positions`` by the model's own output layer, float32 (P, V)."""
        return self.lm(input_ids=input_ids[None], use_cache=False).logits[0][positions - 1].float()

    def _hidden(self, input_ids: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """Last hidden states, (T, H); in pairs (2 T, H)."""
        if lengths is None:
            return self.body(input_ids=input_ids[None], use_cache=False).last_hidden_state[0]
        if self._in_pairs:
            return self._packed_hidden(input_ids.repeat(2), [*lengths, *lengths])
        compiled, tokens = self._compiled, len(input_ids)
        if compiled is None or not compiled.tokens // 2 <= tokens <= compiled.tokens or torch.is_grad_enabled():
            return self._packed_hidden(input_ids, lengths)
        self._refresh()
        filling = compiled.tokens - tokens
        with compiled.running():
            filled = self._packed_hidden(pad(input_ids, (0, filling)), [*lengths, filling] if filling else lengths)
        return filled[:tokens]

    def _packed_hidden(self, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        position_ids = torch.cat([torch.arange(n) for n in lengths]).to(input_ids.device)  # one copy, not n kernels
        with segments(self.lm, lengths, allow_bf16=self._allow_bf16):
            output = self.body(input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False)
        return output.last_hidden_state[0]

    def _probe(self, window: int) -> None:
        structure = self._structure(window)
        if structure in _probed:
            (self.is_packed, self._has_head), self.probed_window = _probed[structure], window
            return
        self._probe_passes(window)
        if structure is not None:
            _probed[structure] = self.is_packed, self._has_head

    def _structure(self, window: int) -> Hashable:
        """All that the probe's outcome depends on but the weights' values; None where a module has a forward of its own
        (hooks, patches), which cannot be compared."""
        modules = list(self.model.named_modules())
        if any("forward" in vars(module) for _, module in modules):
            return None
        types = tuple((name, type(module), type(module).forward) for name, module in modules)
        weights = next(self.lm.parameters())
        return types, self.lm.config.to_json_string(), weights.device.type, weights.dtype, window

    def _probe_passes(self, window: int) -> None:
        self.is_packed, self._has_head, self.probed_window = False, False, window
        ids, lengths, positions = self._sample([*PROBE_LENGTHS, window + 8] if window else list(PROBE_LENGTHS))
        with evaluating(self.model), torch.no_grad(), precision_policy(self.body, "exact", with_kernels=False):
            expected = self.losses(ids, lengths, positions)
            try:
                head_of(self.lm)
            except ModelError as error:
                logger.warning("%s; its own output layer is used, which is slower", error)
                return
            self._has_head = True
            if problem := find_problem(lambda: self.losses(ids, lengths, positions), expected):
                logger.warning(
                    "%s changes its logits in an unknown way (%s); its own output layer is used", self._name, problem
                )
                self._has_head = False
                return
            self.is_packed = True
            if problem := find_problem(lambda: self.losses(ids, lengths, positions), expected):
                logger.warning("%s runs one conversation a pass, without packing (%s)", self._name, problem)
                self.is_packed = False

    def _sample(self, lengths: list[int]) -> tuple[Tensor, list[int], Tensor]:
        return draw_sample(lengths, self.vocabulary_size, self.device)

    @property
    def _name(self) -> str:
        return type(self.lm).__name__


def _each(input_ids: Tensor, lengths: Sequence[int], positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each conversation alone: its ids, and its positions counted from its start."""
    start = 0
    for length in lengths:
        inside = positions[(positions >= start) & (positions < start + length)] - start
        yield input_ids[start : start + length], inside
        start += length
