"""Every benchmark of this folder, one after the other, each in a process of its own.

    python benchmarks/run.py [NAME ...]      names without .py; all of them if none is given

Exits 1, after all of them, if one failed or missed what it promises.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    found = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.name != Path(__file__).name}
    chosen = sys.argv[1:] or list(found)
    if unknown := [name for name in chosen if name not in found]:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}")
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(found[name])], check=False).returncode:
            failed.append(name)
        print(flush=True)
    if failed:
        sys.exit(f"failed or missed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
