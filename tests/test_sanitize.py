"""The kernels under sanitizers: what the driver in tests/native must call, and `make sanitize` itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = [
    *("recurrence", "products", "random bits", "steps", "elements"),
    *("refusals", "refusals of the step", "threads"),
]
COMPILER = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def text_of(pattern: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(pattern)))


def test_the_driver_calls_every_function_of_the_interface():
    declared = re.findall(r"^UNROLLED_API [^;(]*?(\w+)\(", text_of("csrc/unrolled*.h"), re.MULTILINE)
    called = text_of("tests/native/*.cpp")
    assert len(declared) > 15
    assert [name for name in declared if name not in called] == []


def test_the_driver_meets_every_refusal():
    sentences = set(re.findall(r'"([^"\n]* [^"\n]*)"', text_of("csrc/*dispatch.cpp") + text_of("csrc/tasks.h")))
    driver = text_of("tests/native/*.cpp") + text_of("tests/native/*.h")
    assert {"run is NULL", "an id is outside the table"} <= sentences
    assert sorted(sentence for sentence in sentences if f'"{sentence}"' not in driver) == []


def why_not(folder: Path) -> str | None:
    """What this machine lacks for a sanitized program, compiled and run."""
    if sys.platform == "win32":
        return "the driver needs mmap and fork, which Windows does not have"
    for tool in ("make", "cmake"):
        if shutil.which(tool) is None:
            return f"{tool} is not on the path"
    if COMPILER is None:
        return "there is no C++ compiler on the path"
    (folder / "nothing.cpp").write_text("int main() { return 0; }\n")
    for kinds in ("address,undefined", "thread"):
        for command in ([COMPILER, f"-fsanitize={kinds}", "nothing.cpp", "-o", "nothing"], ["./nothing"]):
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                return f"-fsanitize={kinds} does not work here: {(run.stderr.strip() or 'no message').splitlines()[-1]}"
    return None


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> str:
    reason = why_not(tmp_path_factory.mktemp("sanitize"))
    if reason is not None:
        pytest.skip(reason)
    run = subprocess.run(["make", "sanitize"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_kernels_run_clean(stages: str):
    calls = dict(re.findall(r"^([a-z ]+): (\d+) calls", stages, re.MULTILINE))
    assert list(calls) == STAGES
    assert all(int(calls[stage]) > 100 for stage in STAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "mistake", "report"),
    [
        ("memory", "overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("memory", "masked-overrun", "AddressSanitizer: SEGV"),
        ("memory", "overflow", "runtime error: signed integer overflow"),
        ("threads", "race", "ThreadSanitizer: data race"),
    ],
)
def test_a_mistake_is_noticed(stages: str, build: str, mistake: str, report: str):
    driver = ROOT / f"build/sanitize-{build}/driver"
    run = subprocess.run([driver, mistake], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert report in run.stderr
