"""Every benchmark of this folder, one after the other, each in a process of its own.

    python benchmarks/run.py [NAME ...] [--write PAGE]      names without .py; all of them if none is given

Exits 1, after all of them, if one failed or missed what it promises.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from page import add_write

FOLDER = Path(__file__).parent
TRANSFORMS = ("packed", "compiled", "transforms", "per_sample")
BENCHMARKS = (
    "recurrence",
    "variants",
    "own_cell",
    "trainer",
    "generation",
    "import_time",
    "text_memory",
    "inspection",
    "live_page",
    *TRANSFORMS,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    add_write(parser)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    write = ["--write", str(arguments.write)] if arguments.write else []
    failed = []
    for name in arguments.names or BENCHMARKS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *write], check=False).returncode:
            failed.append(name)
        print(flush=True)
    if failed:
        sys.exit(f"failed or missed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
