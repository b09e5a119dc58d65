"""What crosses for one image, as a row of bytes: rows are what memory and disk hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from launcher.training.feature_cache.cut import Crossing


@dataclasses.dataclass(frozen=True)
class Layout:
    """How crossing tensors lie in a row: one after the other, maps with their channels last."""

    crossing: tuple[Crossing, ...]
    dtype: torch.dtype
    """In rows."""
    given: tuple[torch.dtype, ...]
    """In the network, for each tensor; under autocast not all are the same."""

    @property
    def row_bytes(self) -> int:
        return sum(tensor.values for tensor in self.crossing) * self.dtype.itemsize

    def rows(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """uint8 (N, row_bytes) on the CPU, from tensors (N, ...). Rounds to `dtype`."""
        parts = []
        for tensor in tensors:
            rounded = tensor.detach().to("cpu", self.dtype)
            if rounded.ndim == 4:
                rounded = rounded.permute(0, 2, 3, 1)
            parts.append(rounded.contiguous().reshape(len(rounded), -1).view(torch.uint8))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def tensors(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors (N, ...) of rows; without a copy where there is one for each image."""
        found, begin = [], 0
        for tensor, given in zip(self.crossing, self.given, strict=True):
            end = begin + tensor.values * self.dtype.itemsize
            flat = rows[:, begin:end].contiguous().view(self.dtype).to(given)
            begin = end
            if len(tensor.shape) == 3:
                channels, height, width = tensor.shape
                found.append(flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2))
            else:
                found.append(flat.reshape(-1, *tensor.shape))
        return tuple(found)

    def rounded(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """As they would come back from rows: what is computed anew equals what was kept."""
        return tuple(tensor.to(self.dtype).to(given) for tensor, given in zip(tensors, self.given, strict=True))
