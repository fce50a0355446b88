"""The largest singular value of every matrix, the same at every ZeRO stage, without a whole matrix anywhere.

A power iteration multiplies a vector by WᵀW again and again. Here all vectors that it passes through are kept, made orthogonal, and
the best value over all of them is taken (Golub and Kahan, 1965; Lanczos): 16 products come nearer than 50 of the plain iteration.
What is found is never too large, and up to 1 % too small where no singular value stands out, as in a Gaussian matrix.

Each probe begins anew, with vectors that are always the same. So nothing needs to be saved, and a resume changes no recorded value;
a vector kept from the probe before would spare products, but would have to be in every checkpoint.

A rank multiplies by the pieces that it holds, and what travels is vectors: for all matrices together, two exchanges a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.agree import over_ranks
from engine.fragments import Fragments

PRODUCTS = 16
AT_ONCE = 1 << 22  # elements of bfloat16 masters whose float32 copies are held at once


def spectral_columns(fragments: Fragments, labels: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Columns `probe/spectral_norm/…` of each label: the largest of its tensors', by their places among the names. Collective."""
    values = spectral_norms(fragments)
    found = {
        label: [values[name] for name in (fragments.names[i] for i in members) if name in values]
        for label, members in labels.items()
    }
    return {f"probe/spectral_norm/{label}": max(values) for label, values in found.items() if values}


@torch.no_grad()
def spectral_norms(fragments: Fragments) -> dict[str, float]:
    """‖W‖₂ of every tensor of two or more dimensions; a convolution (out, in, h, w) is the matrix (out, in·h·w). Collective."""
    names = [name for name, shape in fragments.shapes.items() if len(shape) > 1]
    matrices = _Matrices(fragments, names)
    n, widest, device = len(names), max(matrices.short), fragments.ds.device
    # The same numbers each time, and zeros beyond a vector's end. No generator of the run is touched.
    v = torch.randn(n, widest, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v *= torch.arange(widest) < torch.tensor(matrices.short)[:, None]
    v = (v / v.norm(dim=1, keepdim=True)).to(device)
    basis = torch.zeros(n, PRODUCTS, widest, dtype=torch.float64, device=device)
    a, b = (torch.zeros(n, PRODUCTS, dtype=torch.float64, device=device) for _ in range(2))
    for k in range(PRODUCTS):
        basis[:, k] = v
        z = matrices.gram_times(v)
        a[:, k] = (z * v).sum(1)
        for _ in range(2):  # once would leave what rounding made
            z -= (basis.transpose(1, 2) @ (basis @ z[:, :, None]))[:, :, 0]
        b[:, k] = z.norm(dim=1)
        # Where the vectors fill the whole space only rounding is left: the iteration ends there.
        goes_on = b[:, k] > 1e-6 * a.amax(1)
        b[:, k] *= goes_on
        v = torch.where(goes_on[:, None], z / b[:, k, None].clamp_min(1e-300), 0.0)
    # In the basis WᵀW is tridiagonal.
    small = torch.diag_embed(a) + torch.diag_embed(b[:, :-1], 1) + torch.diag_embed(b[:, :-1], -1)
    small = small.cpu()
    if not small.isfinite().all():  # of weights that are not, nothing is known
        return dict.fromkeys(names, float("nan"))
    largest = torch.linalg.eigvalsh(small)[:, -1].clamp_min(0).sqrt()
    return dict(zip(names, largest.tolist(), strict=True))


@dataclass(frozen=True)
class _Block:
    """Rows `row` … and columns `column` … of matrix `place`, as far as this rank holds them: (r, c)."""

    place: int
    row: int
    column: int
    values: Tensor


class _Matrices:
    """This rank's blocks of all matrices. The Gram matrix is of the shorter side: fewer numbers are kept and sent."""

    def __init__(self, fragments: Fragments, names: list[str]) -> None:
        self.sharded, self.device = fragments.sharded, fragments.ds.device
        shapes = [(fragments.shapes[name][0], fragments.shapes[name][1:].numel()) for name in names]
        self.is_wide = [rows < columns for rows, columns in shapes]
        self.short, self.long = [min(shape) for shape in shapes], [max(shape) for shape in shapes]
        places = {name: i for i, name in enumerate(names)}
        self.blocks = [
            block
            for fragment in fragments.local
            if fragment.name in places
            for block in blocks(
                places[fragment.name], fragment.weight, fragment.start, shapes[places[fragment.name]][1]
            )
        ]

    def gram_times(self, v: Tensor) -> Tensor:
        """(n, widest) float64 → the same: of each matrix WᵀW·v, or WWᵀ·v where that is smaller. Collective."""
        narrow = v.float()
        wide = torch.zeros(sum(self.long), device=self.device)
        parts, found = wide.split(self.long), torch.zeros_like(narrow)
        for block in self.blocks:
            _add(parts[block.place], block, narrow[block.place], self.is_wide[block.place])
        if self.sharded:
            over_ranks(wide)
        for block in self.blocks:
            _add(found[block.place], block, parts[block.place], not self.is_wide[block.place])
        if self.sharded:
            over_ranks(found)
        return found.double()


def blocks(place: int, weight: Tensor, start: int, columns: int) -> Iterator[_Block]:
    """The rectangles that elements `start` … of a flattened matrix are: the end of a row, whole rows, the beginning of one."""
    head = min(-start % columns, len(weight))
    rows = (len(weight) - head) // columns
    if head:
        yield _Block(place, start // columns, start % columns, weight[:head].view(1, -1))
    first, middle = (start + head) // columns, weight[head : head + rows * columns].view(rows, columns)
    # Of bfloat16 masters a few rows at a time are made float32.
    step = max(1, rows if weight.dtype == torch.float32 else AT_ONCE // columns)
    for row in range(0, rows, step):
        yield _Block(place, first + row, 0, middle[row : row + step])
    if head + rows * columns < len(weight):
        yield _Block(place, first + rows, 0, weight[head + rows * columns :].view(1, -1))


def _add(out: Tensor, block: _Block, vector: Tensor, transposed: bool) -> None:
    """Add what a block does to a vector (columns,), or transposed to one (rows,)."""
    values = block.values.float()
    rows = slice(block.row, block.row + len(values))
    columns = slice(block.column, block.column + values.shape[1])
    if transposed:
        out[columns].addmv_(values.T, vector[rows])
    else:
        out[rows].addmv_(values, vector[columns])
