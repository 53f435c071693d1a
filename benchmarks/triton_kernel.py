"""A hand-written Triton kernel, as one would write it: one pass over the inputs and a partial sum for each block.

It computes in float32, the loss as max(x, 0) - x y + log(1 + exp(-|x|)).
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit
def _pass(x_at, y_at, partial_at, gradient_at, n, scale, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    places = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    x = tl.load(x_at + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_at + places, mask=inside, other=0.0).to(tl.float32)
    t = tl.exp(-tl.abs(x))
    loss = tl.maximum(x, 0.0) - x * y + tl.log(1.0 + t)
    tl.store(partial_at + block, tl.sum(tl.where(inside, loss, 0.0), axis=0))
    if GRADIENT:
        sigmoid = tl.where(x >= 0.0, 1.0, t) / (1.0 + t)
        tl.store(gradient_at + places, (sigmoid - y) * scale, mask=inside)


def mean_loss(x: torch.Tensor, y: torch.Tensor, gradient: torch.Tensor | None = None) -> torch.Tensor:
    """The mean loss of logits, and its gradient written where one is given."""
    n = x.numel()
    blocks = triton.cdiv(n, BLOCK)
    partial = torch.empty(blocks, dtype=torch.float32, device=x.device)
    written = partial if gradient is None else gradient
    _pass[(blocks,)](x, y, partial, written, n, 1.0 / n, GRADIENT=gradient is not None, BLOCK=BLOCK, num_warps=8)
    return partial.sum(dtype=torch.float64) / n
