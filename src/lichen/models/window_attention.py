"""Attention inside windows, and the layers that Zou 2022 builds from it.

    softmax(q k^T / sqrt(d) + b) v        for the w * w positions of each window, each head

q, k, v: linear in the input; d: channels of a head; b: a learned bias by relative position (Liu
2021, "Swin Transformer: hierarchical vision transformer using shifted windows", eq. 4). Every
second block shifts the windows by half their side, cyclically; a mask keeps apart what the shift
has brought together.

Names of parameters and buffers, and so the nesting of modules, are those of the authors' code
(github.com/Googolxx/STF, Apache-2.0, `compressai/layers` and `compressai/models/stf.py`), whose
window functions in turn are those of Swin Transformer (Microsoft, MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -100.0  # added to the logits of positions that are no neighbours: their weight is e-44


def windows_of(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, window * window, C), windows row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `windows_of`: (B * windows, window * window, C) -> (B, H, W, C)."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Give (windows, window**2, window**2): 0 where two positions may see one another.

    After a cyclic shift the last window of a row (or column) holds `shift` positions that come
    from the other edge of the picture.
    """

    def bands(size: int) -> Tensor:
        band = torch.zeros(size, device=like.device)
        band[-window:] = 1
        band[-shift:] = 2
        return band

    region = 3 * bands(height)[:, None] + bands(width)[None, :]
    rows = windows_of(region[None, :, :, None], window).squeeze(-1)
    return MASKED * (rows[:, None, :] != rows[:, :, None]).to(like.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention among the positions of a window, with relative position bias."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the {dim} channels evenly, not {heads}")
        self.dim, self.window, self.heads = dim, window, heads
        span = 2 * window - 1  # relative positions along one axis
        self.relative_position_bias_table = nn.Parameter(torch.empty(span * span, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        place = torch.arange(window)
        rows, columns = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
        dy = rows[:, None] - rows[None, :] + window - 1
        dx = columns[:, None] - columns[None, :] + window - 1
        self.register_buffer("relative_position_index", dy * span + dx)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B * windows, T, C), T = window**2; mask: (windows, T, T) to add to the logits."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)  # (n, heads, T, T)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        logits = logits + bias.reshape(t, t, -1).permute(2, 0, 1)
        if mask is not None:
            logits = logits.reshape(-1, len(mask), self.heads, t, t) + mask[:, None]
            logits = logits.reshape(n, self.heads, t, t)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))


def attend(x: Tensor, attention: WindowAttention, shift: int) -> Tensor:
    """Apply attention to the windows of x (B, H, W, C), shifted by `shift` positions.

    Where the window's side does not divide H or W, zeros fill up the last ones.
    """
    height, width = x.shape[1:3]
    side = attention.window
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    h, w = x.shape[1:3]
    mask = None
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
        mask = shift_mask(h, w, side, shift, x)
    x = from_windows(attention(windows_of(x, side), mask), side, h, w)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    return x[:, :height, :width]


class WindowBlock(nn.Module):
    """x + attention(x), on (B, C, H, W)."""

    def __init__(self, dim: int, window: int, shift: int, heads: int) -> None:
        super().__init__()
        self.shift = shift
        self.attn = WindowAttention(dim, window, heads)

    def forward(self, x: Tensor) -> Tensor:
        y = attend(x.permute(0, 2, 3, 1), self.attn, self.shift)
        return x + y.permute(0, 3, 1, 2)


class ResidualUnit(nn.Module):
    """GELU(x + convolutions(x)): 1x1 to half the channels, 3x3, 1x1 back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv = nn.Sequential(
            nn.Conv2d(dim, half, 1),
            nn.GELU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(half, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv(x))


class WindowAttentionModule(nn.Module):
    """Zou 2022, section 3.2 and figure 4: x + a(x) * sigmoid(b(x)), b with window attention.

    The authors call it Win_noShift_Attention; yet it shifts its windows by half their side.
    """

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(dim) for _ in range(3)))
        self.conv_b = nn.Sequential(
            WindowBlock(dim, window, window // 2, heads),
            *(ResidualUnit(dim) for _ in range(3)),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))


class Mlp(nn.Module):
    """linear(GELU(linear(x))), position by position."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Liu 2021, eq. 3: x + attention(norm(x)), then x + mlp(norm(x)), on (B, H, W, C).

    drop: the probability with which training leaves a branch out, picture by picture
    (Huang 2016, "Deep networks with stochastic depth").
    """

    def __init__(self, dim: int, window: int, shift: int, heads: int, drop: float) -> None:
        super().__init__()
        self.shift, self.drop = shift, drop
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(attend(self.norm1(x), self.attn, self.shift))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return branch
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= self.drop
        return branch * kept / (1 - self.drop)


class PatchMerging(nn.Module):
    """Halve the size, double the channels: (B, H, W, C) -> (B, H/2, W/2, 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class PatchSplit(nn.Module):
    """Double the size, halve the channels: (B, H, W, C) -> (B, 2 H, 2 W, C/2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduction(self.norm(x)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(x, 2).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Swin blocks, their windows in turn not shifted and shifted; then a change of size.

    drops: for each block, see SwinBlock. resample: PatchMerging, PatchSplit or none.
    """

    def __init__(
        self,
        dim: int,
        window: int,
        heads: int,
        drops: list[float],
        resample: type[PatchMerging] | type[PatchSplit] | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, window, window // 2 if number % 2 else 0, heads, drop)
            for number, drop in enumerate(drops)
        )
        self.downsample = nn.Identity() if resample is None else resample(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class PatchEmbed(nn.Module):
    """Pixels (B, 3, H, W) -> one vector for each patch, (B, H / patch, W / patch, C)."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        patch = self.proj.stride[0]
        x = F.pad(x, (0, -x.shape[3] % patch, 0, -x.shape[2] % patch))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))
