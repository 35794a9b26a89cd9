"""A run's log as a picture; whatever can't be drawn is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from unrolled import curve
from unrolled.cli import main
from unrolled.curve import CurveError, plot, smoothed

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines: list[dict[str, Any]] = [{"event": "started"}]
    for step in range(10, 510, 10):
        lines.append({"event": "step", "step": step, "loss": 1 + 2 * 0.99**step, "lr": 0.01 * (1 - step / 510)})
        if step % 100 == 0:
            lines.append({"event": "evaluated", "step": step, "score": {"nats": 1.25 + (step - 300) ** 2 / 1e6}})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st'
    (tmp_path / "log.jsonl").write_text(text)
    return tmp_path


def test_a_smoothed_line_stays_one_and_means_are_of_neighbours() -> None:
    assert smoothed([1.0, 2.0, 3.0, 4.0, 5.0], 2) == pytest.approx([1, 2, 3, 3.5, 4]), "no lag at the beginning"
    assert smoothed([5.0, 1.0, 6.0, 2.0], 9) == pytest.approx([5, 4, 3.5, 3.5])
    assert smoothed([5.0, 1.0, 4.0], 0) == [5, 1, 4]


def test_the_picture_names_the_best_score_and_what_is_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    assert plot(run) == run / "curve.svg"
    text = (run / "curve.svg").read_text()
    for said in ("1.250 at step 300", "training, with dropout, smoothed", "validation, in blocks", "learning rate"):
        assert said in text


def test_png_by_its_name(run: Path) -> None:
    assert plot(run, run / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CurveError, match=r"a\.pdf is neither \.svg nor \.png; name the picture so: --out curve\.svg"):
        plot(run, run / "a.pdf")
    with pytest.raises(CurveError, match=r"log\.jsonl can't be read: No such file .* pass the directory of a run"):
        plot(tmp_path / "nothing")
    (run / "log.jsonl").write_text('{"event": "started"}\n')
    with pytest.raises(CurveError, match=r"has no step yet; train first, and then draw"):
        plot(run)
    assert not (run / "curve.svg").exists()


def test_without_matplotlib_a_sentence_says_how_to_get_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(curve.CurveError, match=r"matplotlib is not installed: pip install 'unrolled\[plots\]'"):
        plot(run)


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plot", str(run)])
    assert capsys.readouterr().out == f"drawn: {run / 'curve.svg'}\n"
    assert "<svg" in (run / "curve.svg").read_text()
    with pytest.raises(SystemExit) as left:
        main(["plot", str(run / "nothing")])
    assert left.value.code == 1
    assert "pass the directory of a run" in capsys.readouterr().err
