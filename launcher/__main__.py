"""python -m launcher"""

import gc
import os
import sys

# Before torch loads its OpenMP. Threads that wait actively take the cores of the data workers and of other jobs on the
# machine: on 2 cores shared with one other process, a training step of EfficientNet-lite0 took 3 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Importing torch makes hundreds of thousands of objects, which Python's collector goes through 900 times to find that
# none is garbage: of 3.4 s of a core, 0.5 s. It still collects, at every 50,000 objects.
gc.set_threshold(50_000, 20, 100)

from launcher.cli import main  # noqa: E402


def start() -> None:
    """Run the command line's command and leave with its exit code; the console script `vision-launcher` is this."""
    code = main(sys.argv[1:])
    gc.freeze()  # all there is: the interpreter would look through it once more before it ends, for 0.5 s of a core
    sys.exit(code)


if __name__ == "__main__":
    start()
