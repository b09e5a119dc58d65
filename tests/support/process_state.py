"""What torch and Accelerate keep in a process between two runs."""

from __future__ import annotations

import sys


def forget_processes() -> None:
    """Put an end to the process group, and to what Accelerate keeps; most tests import neither."""
    if "torch.distributed" in sys.modules:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
