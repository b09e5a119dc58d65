"""The entry point of `python -m launcher`."""

import gc
import os
import sys

# Set before torch loads its OpenMP. Threads that wait actively take cores from the data workers and from other jobs on
# the machine: on 2 cores shared with one other process, a training step of EfficientNet-lite0 took 3 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Importing torch makes hundreds of thousands of objects. Python's garbage collector goes through them 900 times to find
# that none is garbage, which takes 0.5 s of 3.4 s of a core. With this threshold, it collects at every 50,000 objects.
gc.set_threshold(50_000, 20, 100)

from launcher.cli import main  # noqa: E402


def start() -> None:
    """Run the command and exit with its exit code, also as the console script `vision-launcher`."""
    code = main(sys.argv[1:])
    gc.freeze()  # otherwise the interpreter goes through all objects once more before it ends, for 0.5 s of a core
    sys.exit(code)


if __name__ == "__main__":
    start()
