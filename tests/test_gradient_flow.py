import json

import torch
from small_runs import only, run, small

from unrolled.gradient_flow import GradientFlow
from unrolled.reach import reach
from unrolled.train import Started


def test_it_measures_now_and_then_and_changes_nothing(tmp_path, monkeypatch):
    config = small(tmp_path, monkeypatch)
    seen = []

    def weights(event, trainer):
        # After `flow`, with the very weights that it saw.
        if flow.flows and len(flow.flows) > len(seen):
            seen.append(reach(trainer.model, trainer.corpus.val, window=8, tokens=3, warm_up=0))

    flow = GradientFlow(10, window=8, tokens=3, path=tmp_path / "flow.jsonl")
    events = run(config, callbacks=[flow, weights])
    assert [each.step for each in flow.flows] == [0, 10, 20, 30]
    for each, other in zip(flow.flows, seen, strict=True):
        torch.testing.assert_close(each.reach.c, other.c)
    lines = [json.loads(line) for line in (tmp_path / "flow.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    assert lines[1]["c"] == flow.flows[1].reach.mean("c").tolist()
    assert lines[1]["h"] == flow.flows[1].reach.mean("h").tolist()

    without = run(config.__class__.from_dict({**config.as_dict(), "out": str(tmp_path / "other")}))
    assert [e.loss for e in events if hasattr(e, "loss")] == [e.loss for e in without if hasattr(e, "loss")]


def test_a_run_that_is_taken_up_does_not_measure_a_step_twice(tmp_path, monkeypatch):
    config = small(tmp_path, monkeypatch)
    flow = GradientFlow(10, window=8, tokens=2, path=tmp_path / "flow.jsonl")
    run(config, stop_at=10, callbacks=[flow])
    again = GradientFlow(10, window=8, tokens=2, path=tmp_path / "flow.jsonl")
    events = run(config, callbacks=[again])
    assert only(events, Started)[0].step == 10
    steps = [json.loads(line)["step"] for line in (tmp_path / "flow.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [0, 10, 20, 30]
