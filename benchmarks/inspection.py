"""How long a text takes to be inspected, and how much memory: short and long ones, each in a process of its own.

A model of random weights, by default two layers of 512 over characters, is inspected on the text of Python's
documentation, repeated until it is as long as asked: ids of one byte each, as a corpus has them. For each length a
process reads the text once and says how long `inspect` took, how long the model alone takes over the same text (h, c
and gates of every step, and nothing done with them), and its peak of anonymous memory (RssAnon, Linux; sampled). Times
come from one process after the other, so that nothing but the length differs.

    python benchmarks/inspection.py [--tokens 100000 1000000] [--hidden 512] [--threads N] [--write PAGE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from page import add_write, provenance, table, write_section
from text_memory import BOUND, anonymous

# What 100,000 characters may take with two layers of 512, on two cores.
SECONDS, TOKENS = 10.0, 100_000
INTERVAL = 0.1


def inspected(tokens: int, hidden: int, threads: int | None) -> dict[str, Any]:
    """Seconds of the whole and of the model alone; of another process's memory this knows nothing."""
    import numpy as np
    import torch

    from unrolled import CharTokenizer, LanguageModel, ModelConfig, Split, builtin_text, inspect, stretches
    from unrolled.encoding import dtype_for
    from unrolled.stretches import default_lanes

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text(builtin_text())
    once = tokenizer.encode(builtin_text())
    ids = np.empty(tokens, dtype_for(tokenizer.size))
    for begin in range(0, tokens, len(once)):
        ids[begin : begin + len(once)] = once[: tokens - begin]
    split = Split(ids, np.array([0]))
    model = LanguageModel(ModelConfig(tokenizer.size, hidden=hidden, layers=2))
    # What is loaded and packed at a first call is no part of the time.
    inspect(model, Split(split.ids[:4096], split.starts), tokenizer)
    began = time.perf_counter()
    found = inspect(model, split, tokenizer)
    whole = time.perf_counter() - began
    assert found.tokens == tokens
    began = time.perf_counter()
    for _ in stretches(model, split, lanes=default_lanes(tokens)):
        pass
    alone = time.perf_counter() - began
    return {"whole": whole, "alone": alone, "threads": torch.get_num_threads()}


def measured(tokens: int, hidden: int, threads: int | None) -> dict[str, Any]:
    """`inspected` in a process of its own, with its peak of anonymous memory in MB. Exits where it fails."""
    command = [sys.executable, __file__, "--child", "--tokens", str(tokens), "--hidden", str(hidden)]
    command += [] if threads is None else ["--threads", str(threads)]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said: list[str] = []
        listening = threading.Thread(target=lambda: said.append(process.stdout.read() if process.stdout else ""))
        listening.start()
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid) or 0.0)
            time.sleep(INTERVAL)
        listening.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return {**json.loads(said[0]), "peak": peak}


def report(found: dict[int, dict[str, Any]], hidden: int) -> tuple[list[str], bool]:
    """The section's lines, and whether it keeps what it promises."""
    rows = [
        [
            f"{tokens:,}",
            f"{each['whole']:.1f} s",
            f"{each['alone']:.1f} s",
            f"{each['whole'] / each['alone']:.2f}x",
            f"{each['peak']:.0f} MB",
        ]
        for tokens, each in found.items()
    ]
    peaks = [each["peak"] for each in found.values()]
    more = max(peaks) - peaks[0]
    lines = [
        f"Two layers of {hidden}, {next(iter(found.values()))['threads']} threads.",
        "",
        *table(("characters", "inspected in", "the traces alone", "ratio", "peak of RssAnon"), rows),
        "",
    ]
    kept = more <= BOUND
    lines.append(f"At most {BOUND:.0f} MB more for a longer text: {'holds' if kept else 'MISSED'} ({more:.1f} MB).")
    if TOKENS in found and hidden == 512:
        quick = found[TOKENS]["whole"] < SECONDS
        lines.append(f"{TOKENS:,} characters in under {SECONDS:.0f} s: {'holds' if quick else 'MISSED'}.")
        kept = kept and quick
    return lines, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[TOKENS, 10 * TOKENS], help="lengths of the text")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    add_write(parser)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(inspected(arguments.tokens[0], arguments.hidden, arguments.threads)))
        return
    if not Path("/proc/self/status").exists():
        sys.exit("anonymous memory is read from /proc, which this system does not have")
    print(*provenance())
    found = {tokens: measured(tokens, arguments.hidden, arguments.threads) for tokens in arguments.tokens}
    lines, kept = report(found, arguments.hidden)
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "inspection", lines)
    sys.exit(not kept)


if __name__ == "__main__":
    main()
