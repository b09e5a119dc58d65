"""python -m launcher"""

import os
import sys

# Before torch loads its OpenMP. Threads that wait actively take the cores of the data workers and of other jobs on the
# machine: on 2 cores shared with one other process, a training step of EfficientNet-lite0 took 3 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
