"""The ratios of the design that exist so far, in under three minutes on a quiet machine.

make bench-quick
"""

import subprocess
import sys
import time
from pathlib import Path

from harness import hardware

HERE = Path(__file__).parent
BENCHES = (
    ("protocol.py", "--quick"),
    ("control_plane.py", "--seconds", "5"),
    ("train_step.py", "--quick", "--rounds", "1"),
    ("deterministic.py",),
)


def main() -> int:
    """Run the benches one after the other, each a process of its own."""
    start = time.monotonic()
    print(", ".join(f"{key} {value}" for key, value in hardware().items()))
    failed = []
    for name, *options in BENCHES:
        print(f"\n{name} {' '.join(options)}", flush=True)
        if subprocess.run([sys.executable, str(HERE / name), *options], check=False).returncode:
            failed.append(name)
    print(f"\n{time.monotonic() - start:.0f} s in all")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
