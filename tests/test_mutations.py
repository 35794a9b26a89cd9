"""Damaged models, tokenizers and configurations: a model or a sentence, in bounded memory, never a crash or a hang.

Past the manifest, too: nine of ten damaged files are what their manifest says. A failure names its number, and
`python tests/mutations.py NUMBER 1` repeats it.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS, OF_TENSORS, mutate, originals, read_all

SCRIPT = Path(__file__).with_name("mutations.py")


@pytest.mark.parametrize(
    ("first", "count"), [(0, 100), *(pytest.param(n, 1000, marks=pytest.mark.slow) for n in range(0, 20_000, 1000))]
)
def test_damage_is_noticed_or_harmless(first: int, count: int) -> None:
    child = subprocess.run(
        [sys.executable, str(SCRIPT), str(first), str(count)], capture_output=True, text=True, timeout=3600, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert int(child.stdout) > count // 2, "most damage is damage"


def test_a_number_is_always_the_same_damage(tmp_path: Path) -> None:
    changed = []
    for name in "ab":
        for number in range(5):
            root = tmp_path / f"{name}{number}"
            root.mkdir()
            said = mutate(originals(root), number)
            changed.append((said, {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}))
    assert changed[:5] == changed[5:]


@pytest.mark.parametrize("change", dict.fromkeys((*MUTATIONS, *OF_TENSORS)))
def test_every_kind_of_damage_changes_something(tmp_path: Path, change) -> None:
    originals(tmp_path)
    for name in ("manifest.json", "weights.safetensors"):
        data = (tmp_path / "model" / name).read_bytes()
        assert any(change(data, random.Random(number)) != data for number in range(5))


def test_what_is_not_damaged_is_read(tmp_path: Path) -> None:
    assert read_all(originals(tmp_path)) == []
