"""Layers that networks of core and plugins share."""

import pytest
import torch

from advdiff_core.layers import FEW_POSITIONS, GroupNorm, attend


def parts(positions=6, *, strided=False, dtype=torch.float64):
    """Queries, keys and values [2, 3, N, 4]; with `strided` as a convolution leaves them."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, 2, 3, 4, positions, generator=generator, dtype=torch.float64)
    made = made.to(dtype).transpose(-2, -1)
    return (made if strided else made.contiguous()).unbind(0)


def by_loops(q, k, v):
    """Attention of one query after the other."""
    out = torch.zeros_like(q)
    for b, h, n in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        scores = torch.stack([q[b, h, n] @ key for key in k[b, h]]) / q.shape[-1] ** 0.5
        shares = scores.exp() / scores.exp().sum()
        out[b, h, n] = sum(share * value for share, value in zip(shares, v[b, h], strict=True))
    return out


@pytest.mark.parametrize("kernel", ["auto", "fused", "math"])
@pytest.mark.parametrize("strided", [False, True])
def test_attend_is_softmax_attention(kernel, strided):
    """Every kernel equals the formula, however the features lie in memory."""
    q, k, v = parts(strided=strided)
    torch.testing.assert_close(attend(q, k, v, kernel), by_loops(q, k, v))


@pytest.mark.parametrize(
    ("kernel", "positions", "fused"),
    [
        ("math", 6, False),
        ("fused", 6, True),
        ("auto", FEW_POSITIONS, False),
        ("auto", FEW_POSITIONS + 1, True),
    ],
)
def test_attend_takes_the_kernel_it_is_told_to(kernel, positions, fused):
    """The graph names the kernel; strided features do not fall back to the one with weights."""
    q, k, v = parts(positions, strided=True)
    out = attend(q.requires_grad_(), k, v, kernel)
    assert ("FlashAttention" in type(out.grad_fn).__name__) is fused


def test_softmax_of_half_types_is_taken_in_full_precision():
    """bf16 shares would not sum to one; the result is that of exact shares, rounded once."""
    q, k, v = parts(64, dtype=torch.bfloat16)
    found = attend(q, k, torch.ones_like(v), "math")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, torch.ones_like(v), rtol=5e-3, atol=0)


def test_group_norm_of_half_types_is_taken_in_full_precision():
    """A mean far from zero costs no digits beyond those of the input."""
    generator = torch.Generator().manual_seed(1)
    x = (30 + torch.randn(2, 8, 16, 16, generator=generator)).bfloat16()
    norm = GroupNorm(2, 8)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.float()), rtol=1e-2, atol=1e-2)
