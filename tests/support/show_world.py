"""What a training process sees of the others, as one line of JSON. Started for real by test_world.py."""

import json
import sys

from accelerate import Accelerator

from launcher.cluster.processes import check_world, set_threads
from launcher.errors import UserError


def report(seen: dict[str, object]) -> None:
    # One write with its newline: torchrun starts Python unbuffered, and print() would write the two apart.
    sys.stdout.write(f"{json.dumps(seen)}\n")
    sys.stdout.flush()


try:
    world = check_world()
    threads = set_threads(world)
    accelerator = Accelerator(cpu=world.use_cpu)
    world.check(accelerator, mixed_precision="no")
except UserError as error:
    report({"refused": error.problems})
    sys.exit(0)  # not 2: the launchers' own tracebacks are of no interest here
report(
    {
        "processes": accelerator.num_processes,
        "index": accelerator.process_index,
        "type": str(accelerator.distributed_type.value),
        "same_index": accelerator.process_index == world.process_index,
        "threads": threads,
        "cpus": world.num_cpus,
    }
)
accelerator.end_training()
