"""Precision policies: where float32 may give way to bf16, and where never.

=========  ==============================  ===================================================
policy     inside matrix products          elsewhere
=========  ==============================  ===================================================
``exact``  float32                         float32
``safe``   bf16 inputs, float32 sums       float32, attention's products included
``fast``   bf16 inputs, weights, outputs   float32 residual, norms, RoPE, softmax, log-sum-exp
=========  ==============================  ===================================================

With our CPU kernels products give float32 under every policy, and ``fast`` differs from ``safe`` only by bf16 inside
attention's products. Without them ``safe`` permits bf16 inside products (torch's ``medium``), which torch uses where
the processor gains from it, and the head stays float32. A CPU without bf16 instructions would take far longer for bf16
than for float32: there all policies compute in float32, and the record kept with the losses says so. On a GPU ``fast``
gives float32 queries, keys and values to bf16 attention kernels. Adapters stay unmerged under every policy. A score
under ``safe`` is of a pair (``models.pairs``), in which rounding cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch.nn.functional import linear

from tokenclean.models.device import gains_from_bf16
from tokenclean.models.kernels.cpu import has_bf16_kernels, missing_kernels, pack
from tokenclean.models.kernels.cpu import linear as packed_linear

Precision = Literal["exact", "safe", "fast"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(precision: str) -> None:
    """Raise ValueError for an unknown policy."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")


@contextmanager
def precision_policy(
    body: torch.nn.Module, precision: str, *, with_kernels: bool = True, in_pairs: bool = False
) -> Iterator[Callable[[], None]]:
    """Run the block under a policy. ``body`` is the model below its output layer.

    Without gradient, on a CPU that has them, linear layers run in ``kernels.cpu``: float32 under ``exact``, bf16 inputs
    and weights with float32 sums and outputs under ``safe`` and ``fast``. Elsewhere ``fast`` computes linear layers in
    bf16, and the other policies leave them to torch. A weight's copy is kept within the block until the weight changes;
    a trained weight is rounded again each time and gets its gradient in float32. No copy outlives its block: fused
    optimizers and ``.data`` (PEFT's merging) change a weight without a trace.

    ``in_pairs``: the block's rows are a base's and then an adapter's (see ``models.pairs``).

    Yields a function that brings all copies up to date. Call it before compiled code runs, which does not check.
    Raises ValueError for an unknown policy, and for pairs with gradient or where products round their outputs too.
    """
    check_precision(precision)
    has_kernels = with_kernels and not torch.is_grad_enabled() and uses_kernels(body)
    in_bf16 = not has_kernels and precision == "fast" and _torch_multiplies_bf16(body)
    if in_pairs and (in_bf16 or torch.is_grad_enabled()):
        raise ValueError("pairs of a base and an adapter need a block without gradient, under exact or safe")
    layers = {path: m for path, m in body.named_modules() if type(m) is torch.nn.Linear}
    # The products of an adapter itself are of its own rows alone.
    pairs = {path for path in layers if in_pairs and ".lora_" not in path}
    copies: list[CopyOfWeight] = []
    if has_kernels or in_bf16:
        copies = [weight_copy(lambda layer=m: layer.weight, precision, packed=has_kernels) for m in layers.values()]
        forwards = [
            _packed_forward(layer, copy, is_pair=path in pairs) if has_kernels else _bf16_forward(layer, copy)
            for (path, layer), copy in zip(layers.items(), copies, strict=True)
        ]
    else:
        layers = {path: layers[path] for path in pairs}
        forwards = [_paired_forward(layer) for layer in layers.values()]

    def refresh() -> None:
        for copy in copies:
            copy.refresh()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "exact" else "medium")
    try:
        with patched_forward(list(layers.values()), forwards):
            yield refresh
    finally:
        torch.set_float32_matmul_precision(before)


def uses_kernels(module: torch.nn.Module) -> bool:
    """Whether the module's float32 products can run in the CPU kernels, which are compiled now if need be."""
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return False
    return missing_kernels() is None


def multiplies_bf16(module: torch.nn.Module) -> bool:
    """Whether products without gradient take bf16 where the weights are, in our kernels or torch's."""
    return has_bf16_kernels() if uses_kernels(module) else _torch_multiplies_bf16(module)


def _torch_multiplies_bf16(module: torch.nn.Module) -> bool:
    parameter = next(module.parameters(), None)
    return parameter is None or gains_from_bf16(parameter.device)


class CopyOfWeight:
    """A weight's copy in another form, renewed when the weight has changed."""

    def __init__(self, weight: Callable[[], torch.Tensor], form: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._weight, self._form = weight, form
        self._copy: torch.Tensor | None = None
        self._copied_state = (0, 0)

    def __call__(self) -> torch.Tensor:
        if not torch.compiler.is_compiling() or self._copy is None:  # compiled code relies on ``refresh``
            self.refresh()
        assert self._copy is not None
        return self._copy

    def refresh(self) -> None:
        """Copy the weight, unless the copy is up to date."""
        weight = self._weight()
        state = (weight._version, weight.data_ptr())
        if self._copy is None or state != self._copied_state:
            self._copy, self._copied_state = self._form(weight.detach()), state


def weight_copy(weight: Callable[[], torch.Tensor], precision: str, *, packed: bool) -> CopyOfWeight:
    """The weight in bf16; ``packed`` for the CPU kernels, in bf16 where policy and processor allow it, else float32."""
    if not packed:
        return CopyOfWeight(weight, lambda w: w.to(torch.bfloat16))
    as_bf16 = precision != "exact" and has_bf16_kernels()
    return CopyOfWeight(weight, lambda w: pack(w, as_bf16=as_bf16))


def _packed_forward(
    layer: torch.nn.Linear, packed: CopyOfWeight, *, is_pair: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("this precision block was entered without gradient; enter another one to train")
        return packed_linear(x, packed(), layer.out_features, layer.bias, is_pair)

    return forward


def _paired_forward(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return paired_linear(x, layer.weight, layer.bias)

    return forward


def paired_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x`` (…, 2 P, K), a base's rows and then as many of an adapter's, by torch's product: (…, 2 P, N).

    The adapter's are the base's products plus those of the difference of both rows, whose rounding is as small as it.
    """
    base, own = x.chunk(2, dim=-2)
    output = linear(torch.cat([base, own - base], dim=-2), weight)
    of_base, difference = output.chunk(2, dim=-2)
    difference.add_(of_base)
    return output if bias is None else output.add_(bias)


def _bf16_forward(layer: torch.nn.Linear, copy: CopyOfWeight) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        is_trained = layer.weight.requires_grad and torch.is_grad_enabled()
        weight = layer.weight.to(torch.bfloat16) if is_trained else copy()
        output = matmul(x, weight.T)
        return output if layer.bias is None else output + layer.bias

    return forward


@contextmanager
def patched_forward(
    layers: Sequence[torch.nn.Module], forwards: Sequence[Callable[..., torch.Tensor]]
) -> Iterator[None]:
    """Within the block each layer runs the forward at its place; an instance's own (accelerate's hooks) comes back."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward


def matmul(x: torch.Tensor, weight_KN: torch.Tensor) -> torch.Tensor:
    """``x`` (…, K) of any float dtype times a bf16 weight: (…, N) of the dtype of ``x``.

    Without gradient, on a GPU with such kernels, the output is never rounded; elsewhere it is rounded to bf16 first.
    """
    half = x.to(weight_KN.dtype)
    is_plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != torch.float32
    if is_plain or not gives_float32(x.device):
        return (linear(half, weight_KN.T) if weight_KN.T.is_contiguous() else half @ weight_KN).to(x.dtype)
    rows = half.reshape(-1, half.shape[-1])
    return torch.mm(rows, weight_KN, out_dtype=torch.float32).view(*x.shape[:-1], -1)


@lru_cache
def gives_float32(device: torch.device) -> bool:
    """Whether the device multiplies bf16 into float32, found out by trying once."""
    if device.type != "cuda":
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    try:
        with torch.no_grad():
            found = torch.mm(a, b, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # a GPU without it
        return False
    return found.dtype == torch.float32 and bool(torch.allclose(found, a.float() @ b.float(), atol=1e-2, rtol=1e-3))
