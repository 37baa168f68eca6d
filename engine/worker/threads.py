"""How many threads a worker may use, decided before torch loads.

On a CPU the defaults can cost a thousandfold on small matmuls when the machine is loaded: every
OpenMP team member spins for its colleagues, who are not scheduled. A worker therefore waits
passively, keeps a core for its network thread where there are more than two, and runs small steps
on one thread.
"""

import os

# A step runs on one thread when its largest product has fewer multiply-adds: the many small ones
# around it then cost a team more than it gains (bench/threads.py: up to 69 times at 16 x 64).
SMALL_STEP_MACS = 5e7


def worker_environment(device: str, num_threads: int = 0) -> dict[str, str]:
    """Environment variables for a spawned worker's process; `num_threads` 0 decides by cores."""
    threads = num_threads or default_threads(len(os.sched_getaffinity(0)))
    if device != "cpu":
        return {}
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        "MKL_DYNAMIC": "FALSE",  # the partition of a matmul must not depend on the machine's load
    }


def default_threads(cores: int) -> int:
    """All of two cores, else all but one: the network thread of a worker is mostly idle."""
    return cores if cores <= 2 else cores - 1


class StepThreads:
    """Switches torch between one thread and all, by the size of the step.

    Does nothing in a process that belongs to the user, on a device other than the CPU, and in
    deterministic mode, where the number of threads is part of the build fingerprint.
    """

    def __init__(self, is_enabled: bool) -> None:
        import torch

        self._set = torch.set_num_threads
        self._all = torch.get_num_threads()
        self._now = self._all
        self._is_enabled = is_enabled and self._all > 1

    def prepare(self, macs: float) -> None:
        """Choose the threads for a step whose largest product has this many multiply-adds."""
        if not self._is_enabled:
            return
        wanted = 1 if macs < SMALL_STEP_MACS else self._all
        if wanted != self._now:
            self._set(wanted)
            self._now = wanted
