"""The native library: there wherever a C++ compiler is, of the sources beside it, and silent until it is asked for."""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unrolled
from unrolled.recurrence import native

ROOT = Path(__file__).parents[1]
SETS = ("baseline", "avx2", "avx512")
REPAIR = (
    f'python -m pip install -v --no-deps -e "{ROOT}" builds it, with g++, clang++ or MSVC, '
    "and shows what the compiler says"
)
WITHOUT = "it was installed without its native library, because no C++ compiler was there, or it failed; "
needs_library = pytest.mark.skipif(native.library() is None, reason=f"no native library here: {native.missing()}")


def compiler() -> str | None:
    """The one that CMake would take, as far as the PATH shows: Visual Studio's is not on it."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def hash_of_sources(root: Path) -> str:
    """As CMakeLists.txt takes it."""
    files = [*(root / "csrc").glob("*.cpp"), *(root / "csrc").glob("*.h"), root / "CMakeLists.txt"]
    lines = sorted(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def complaint(missing: str | None, made_from: str | None, sources: str, compiler: str | None) -> str | None:
    """What is wrong with this installation; None where nothing is, which a library that nothing can build is not."""
    if missing is not None and compiler is not None:
        return f"there is a C++ compiler ({compiler}), and no native library: {missing}"
    if missing is None and made_from != sources:
        return f"the native library was made from other sources than those in csrc/; {REPAIR}"
    return None


def text(function: str) -> str:
    library = native.library()
    assert library is not None
    call = getattr(library, function)
    call.restype = ctypes.c_char_p
    return call().decode()


def test_the_library_is_there_and_of_these_sources():
    """Where no compiler is, the portable backend runs; where one is, a kernel that does not build must not hide."""
    made_from = None if native.missing() else text("unrolled_sources")
    found = complaint(native.missing(), made_from, hash_of_sources(ROOT), compiler())
    if found:
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize(
    ("missing", "made_from", "compiler", "expected"),
    [
        (None, "new", "g++", None),
        (None, "new", None, None),
        ("it is not there", None, None, None),
        ("it is not there", None, "g++", "there is a C++ compiler (g++), and no native library: it is not there"),
        (None, "old", "g++", f"the native library was made from other sources than those in csrc/; {REPAIR}"),
        (None, "old", None, f"the native library was made from other sources than those in csrc/; {REPAIR}"),
    ],
)
def test_a_broken_installation_is_found(missing, made_from, compiler, expected):
    assert complaint(missing, made_from, "new", compiler) == expected


def test_the_hash_is_of_every_file_and_its_name(tmp_path: Path):
    (tmp_path / "csrc").mkdir()
    hashes = set()
    for name, content in [("CMakeLists.txt", "a"), ("csrc/a.cpp", "a"), ("csrc/a.cpp", "b"), ("csrc/b.h", "b")]:
        (tmp_path / name).write_text(content)
        hashes.add(hash_of_sources(tmp_path))
    (tmp_path / "csrc/b.h").rename(tmp_path / "csrc/c.h")
    assert len({*hashes, hash_of_sources(tmp_path)}) == 5


def test_there_is_a_library_or_a_reason():
    assert (native.library() is None) == (native.missing() is not None)
    assert native.library() is native.library()


def test_both_sides_name_the_same_interface_version():
    header = (ROOT / "csrc/unrolled.h").read_text(encoding="utf-8")
    assert re.findall(r"#define UNROLLED_ABI_VERSION (\d+)", header) == [str(native.ABI_VERSION)]


@needs_library
def test_every_declared_function_is_exported():
    headers = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc").glob("*.h"))
    declared = re.findall(r"^UNROLLED_API [^;(]*?(\w+)\(", headers, re.MULTILINE)
    assert {"unrolled_abi_version", "unrolled_instruction_set"} <= set(declared)
    assert [name for name in declared if not hasattr(native.library(), name)] == []


@needs_library
def test_the_instruction_sets_are_those_of_this_processor():
    sets = native.instruction_sets()
    assert sets == SETS[: len(sets)]
    assert native.instruction_set() == sets[-1]
    flags = set(text("unrolled_instruction_flags").split())
    assert flags <= {"vnni", "bf16"}
    assert not flags or sets == SETS
    if Path("/proc/cpuinfo").exists():  # the kernel's own reading of the same processor
        line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        has = set(line[1].split()) if line else set()
        runs_avx2 = {"avx2", "fma"} <= has
        runs_avx512 = runs_avx2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has
        assert sets == SETS[: 1 + runs_avx2 + runs_avx512]
        named = {"vnni": "avx512_vnni", "bf16": "avx512_bf16"}
        assert flags == {flag for flag in named if runs_avx512 and named[flag] in has}


def test_no_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch):
    nowhere = ROOT / "src/unrolled/recurrence/nowhere.so"
    assert native._load(nowhere) == (None, WITHOUT + REPAIR)
    monkeypatch.setattr(native, "_loaded", lambda: native._load(nowhere))
    assert native.library() is None
    assert native.missing() == WITHOUT + REPAIR
    assert native.instruction_sets() == ()
    with pytest.raises(RuntimeError) as caught:
        native.instruction_set()
    assert str(caught.value) == f"Unrolled has no native library here: {WITHOUT}{REPAIR}"


@pytest.mark.parametrize("folder", ["site-packages/unrolled/recurrence", "/nowhere"])
def test_the_advice_outside_a_source_tree(tmp_path: Path, folder: str):
    assert native._load(tmp_path / folder / "libunrolled.so").reason == (
        f"{WITHOUT}python -m pip install -v --no-deps --force-reinstall PATH, with PATH its source tree, builds it, "
        "with g++, clang++ or MSVC, and shows what the compiler says"
    )


def test_a_file_that_is_no_library_of_ours(tmp_path: Path):
    (tmp_path / "torn.so").write_bytes(b"\x7fELF, and then nothing")
    for path in (tmp_path / "torn.so", Path(_ctypes.__file__)):
        library, reason = native._load(path)
        assert library is None
        assert reason is not None
        assert reason.startswith("its native library cannot be used (")
        assert reason.endswith("shows what the compiler says")


@needs_library
def test_a_library_of_another_interface(monkeypatch: pytest.MonkeyPatch):
    version = native.ABI_VERSION
    monkeypatch.setattr(native, "ABI_VERSION", version + 1)
    assert native._load(native._PATH) == (
        None,
        f"its native library has interface version {version}, and these Python files need {version + 1}; "
        + native._repair(native._PATH),
    )


def test_nothing_is_loaded_before_it_is_asked_for():
    program = """
import json
from unrolled import MultiLayerLSTM
from unrolled.recurrence import native
MultiLayerLSTM(2, 3)
before = native._loaded.cache_info().currsize
native.missing()
print(json.dumps([before, native._loaded.cache_info().currsize]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [0, 1]


def test_an_installation_puts_no_hook_before_the_path(tmp_path: Path):
    """Sources that come first on the path are the ones that run, as everybody who sets PYTHONPATH means it."""
    shutil.copytree(Path(unrolled.__file__).parent, tmp_path / "unrolled", ignore=shutil.ignore_patterns("*.pyc"))
    program = "import unrolled.recurrence.native as native, sys; sys.stdout.write(native.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert Path(run.stdout) == tmp_path / "unrolled/recurrence/native.py"
