"""The native library of the CPU kernels: where it lies, whether it can be used, and the sentence for why not.

The library has a plain C interface (csrc/unrolled.h) and is loaded with ctypes when it is first asked for. It lies
beside this file: a wheel brings it along, and an editable install builds it into the source tree.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import NamedTuple

# What csrc/unrolled.h says too: the two go up together whenever a function or a struct there changes.
ABI_VERSION = 8

_PATH = Path(__file__).with_name("libunrolled.dll" if sys.platform == "win32" else "libunrolled.so")


class _Loaded(NamedTuple):
    """The library, or the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str | None


def library() -> ctypes.CDLL | None:
    """The library, loaded at the first call and checked; None where it cannot be used, for the reason of `missing`.

    Functions have no argument types yet: those are for whoever calls them.
    """
    return _loaded().library


def missing() -> str | None:
    """Why there is no native library, in a sentence that ends in what to do about it; None where there is one."""
    return _loaded().reason


def instruction_set() -> str:
    """The best set that this processor runs and the library has: "baseline", "avx2" or "avx512".

    Raises RuntimeError, with the reason, where there is no library.
    """
    return _text("unrolled_instruction_set")


def instruction_sets() -> tuple[str, ...]:
    """All that this processor runs and the library has, best last; none where there is no library."""
    return tuple(_text("unrolled_instruction_sets").split()) if library() is not None else ()


@functools.cache
def _loaded() -> _Loaded:
    return _load(_PATH)


def _load(path: Path) -> _Loaded:
    if not path.exists():
        return _Loaded(
            None,
            "it was installed without its native library, because no C++ compiler was there, or it failed; "
            + _repair(path),
        )
    try:
        found = ctypes.CDLL(str(path))
        version = found.unrolled_abi_version()
    except (OSError, AttributeError) as error:
        return _Loaded(None, f"its native library cannot be used ({error}); {_repair(path)}")
    if version != ABI_VERSION:
        return _Loaded(
            None,
            f"its native library has interface version {version}, and these Python files need {ABI_VERSION}; "
            + _repair(path),
        )
    return _Loaded(found, None)


def _repair(path: Path) -> str:
    """What to type; the library's place says whether this is an editable install, and of which source tree."""
    trees = [tree for tree in path.resolve().parents[3:4] if (tree / "csrc").is_dir()]
    what = f'-e "{trees[0]}"' if trees else "--force-reinstall PATH, with PATH its source tree,"
    return (
        f"python -m pip install -v --no-deps {what} builds it, with g++, clang++ or MSVC, "
        "and shows what the compiler says"
    )


def _text(function: str) -> str:
    found = library()
    if found is None:
        raise RuntimeError(f"Unrolled has no native library here: {missing()}")
    call = getattr(found, function)
    call.restype = ctypes.c_char_p
    text: bytes = call()
    return text.decode("ascii")
