"""Rows of bytes, each with the boundary tensors of one image: the form in which memory and disk hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from launcher.training.feature_cache.cut import BoundaryTensor


@dataclasses.dataclass(frozen=True)
class Layout:
    """Layout of boundary tensors in a row: one after the other, feature maps with their channels last."""

    boundary: tuple[BoundaryTensor, ...]
    dtype: torch.dtype
    """Data type in rows."""
    dtypes: tuple[torch.dtype, ...]
    """Data type of each tensor in the network; under autocast they may differ."""

    @property
    def row_bytes(self) -> int:
        """Size of a row, in bytes."""
        return sum(tensor.values for tensor in self.boundary) * self.dtype.itemsize

    def rows(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return tensors (N, ...) as rows, uint8 (N, row_bytes) on the CPU, rounded to `dtype`."""
        parts = []
        for tensor in tensors:
            rounded = tensor.detach().to("cpu", self.dtype)
            if rounded.ndim == 4:
                rounded = rounded.permute(0, 2, 3, 1)
            parts.append(rounded.contiguous().reshape(len(rounded), -1).view(torch.uint8))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def tensors(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors (N, ...) of rows, without a copy if there is one for each image and its dtype stays."""
        tensors, begin = [], 0
        for tensor, dtype in zip(self.boundary, self.dtypes, strict=True):
            end = begin + tensor.values * self.dtype.itemsize
            flat = rows[:, begin:end].contiguous().view(self.dtype).to(dtype)
            begin = end
            if len(tensor.shape) == 3:
                channels, height, width = tensor.shape
                tensors.append(flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2))
            else:
                tensors.append(flat.reshape(-1, *tensor.shape))
        return tuple(tensors)

    def rounded(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return tensors as they would come back from rows, so that those computed anew equal those kept."""
        return tuple(tensor.to(self.dtype).to(dtype) for tensor, dtype in zip(tensors, self.dtypes, strict=True))
