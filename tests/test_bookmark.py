import random
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from unrolled import Bookmark, BookmarkError, generate, load, save_model
from unrolled.bookmark import weights_sha256
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer

SETTINGS = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "penalty_window": 30, "stop": ["zz", "\ufffd\ufffda"]}


class Run:
    def __init__(self, seed=0, **sizes):
        torch.manual_seed(seed)
        self.model = LanguageModel(ModelConfig(256, **{"hidden": 6, "layers": 2, "embedding": 4, **sizes}))
        self.tokenizer = ByteTokenizer()


@pytest.fixture
def saved(tmp_path):
    run = Run()
    writing = generate(run, "né", max_tokens=20, **SETTINGS)
    list(writing)
    writing.bookmark().save(tmp_path / "state", run.model)
    return run, tmp_path / "state", writing.bookmark()


def refused(path, model, message):
    with pytest.raises(BookmarkError, match=message) as caught:
        Bookmark.load(path, model)
    assert str(path) in str(caught.value)


def test_what_is_saved_is_what_is_loaded(saved):
    run, path, bookmark = saved
    again = Bookmark.load(path, run.model)
    for name in ("seen", "unread", "written", "pending", "seed", "sample", "drawn"):
        assert getattr(again, name) == getattr(bookmark, name)
    assert torch.equal(again.state.h, bookmark.state.h)
    assert torch.equal(again.state.c, bookmark.state.c)


def test_the_place_before_anything_was_read_has_no_state(tmp_path):
    run = Run()
    generate(run, "abc", max_tokens=0, seed=2**63 - 1).bookmark().save(tmp_path / "state", run.model)
    again = Bookmark.load(tmp_path / "state", run.model)
    assert (again.state, again.seen, again.unread, again.seed) == (None, (97, 98, 99), 3, 2**63 - 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_state_has_the_models_dtype(tmp_path, dtype):
    run = Run()
    run.model.to(dtype)
    writing = generate(run, "a", max_tokens=3)
    list(writing)
    writing.bookmark().save(tmp_path / "state", run.model)
    assert Bookmark.load(tmp_path / "state", run.model).state.c.dtype == dtype


@pytest.mark.parametrize(("temperature", "cut"), [pytest.param(0.0, 17, marks=pytest.mark.slow), (1.0, 40)])
def test_another_process_goes_on_exactly(tmp_path, temperature, cut):
    run = Run(seed=3)
    settings = {"temperature": temperature, **SETTINGS}
    whole = list(generate(run, "abc", max_tokens=60, seed=4, **settings))
    first = generate(run, "abc", max_tokens=cut, seed=4, **settings)
    begun = [piece for piece in first if piece.finished]
    save_model(tmp_path / "model", run.model, run.tokenizer)
    first.bookmark().save(tmp_path / "state", run.model)
    script = (
        "import sys\n"
        "from unrolled import Bookmark, generate, load\n"
        "run = load(sys.argv[1])\n"
        f"pieces = generate(run, state=Bookmark.load(sys.argv[2], run.model), max_tokens={60 - cut}, **{settings!r})\n"
        "print([(piece.ids, piece.logprobs) for piece in pieces])\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "model"), str(tmp_path / "state")]
    rest = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    told = [(piece.ids, piece.logprobs) for piece in whole]
    assert [(piece.ids, piece.logprobs) for piece in begun] == told[: len(begun)]
    assert rest == f"{told[len(begun) :]!r}\n"


def test_a_bookmark_of_another_model_is_refused(saved):
    run, path, _ = saved
    message = "belongs to another model, or to this one before it was trained further.*begin with --prompt"
    refused(path, Run(seed=1).model, message)
    refused(path, Run(hidden=7).model, message)
    with torch.no_grad():
        run.model.lstm.proj.bias[5] += 1e-6
    refused(path, run.model, message)


def test_the_hash_is_of_every_weight_and_of_nothing_else():
    model = Run().model
    first = weights_sha256(model)
    assert weights_sha256(Run().model) == first
    assert weights_sha256(model.train()) == weights_sha256(model.eval()) == first
    for parameter in model.parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter.view(-1)[-1] += 1
            assert weights_sha256(model) != first
            parameter.copy_(before)
    assert weights_sha256(model) == first
    assert weights_sha256(model.double()) != first


def test_files_that_are_none(tmp_path):
    model = Run().model
    refused(tmp_path / "gone", model, "there is no such file")
    refused(tmp_path, model, "is a directory, and a saved state is a file")
    (tmp_path / "text").write_text("Once upon a time")
    refused(tmp_path / "text", model, "is not a saved state, or a damaged one")
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", model, "is not a saved state, or a damaged one")
    safetensors.torch.save_file({"h": torch.zeros(2)}, tmp_path / "other")
    refused(tmp_path / "other", model, "is not a saved state: unrolled generate RUN --save-state FILE writes one")
    safetensors.torch.save_file({}, tmp_path / "newer", {"format": "unrolled-bookmark", "version": "9"})
    refused(tmp_path / "newer", model, "is of format version '9', and this version of unrolled reads 1")


def test_every_mutation_and_every_shortening_is_refused(saved):
    run, path, _ = saved
    raw, draw = path.read_bytes(), random.Random(0)
    for _ in range(600):
        place = draw.randrange(len(raw))
        mutated = raw[:place] + bytes([raw[place] ^ (1 << draw.randrange(8))]) + raw[place + 1 :]
        path.write_bytes(mutated)
        with pytest.raises(BookmarkError):
            Bookmark.load(path, run.model)
    for length in [*range(0, 200, 7), *draw.sample(range(len(raw)), 60)]:
        path.write_bytes(raw[:length])
        with pytest.raises(BookmarkError):
            Bookmark.load(path, run.model)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seen": (1, 256)}, "holds no ids of this model's 256 tokens"),
        ({"pending": (-1,)}, "holds no ids of this model's 256 tokens"),
        ({"unread": 0}, "says more of its text than there is"),
        ({"unread": 99}, "says more of its text than there is"),
        ({"written": 99}, "says more of its text than there is"),
        ({"drawn": -1}, "has '-1' as its \"drawn\", expected a number"),
        ({"seed": 2**63}, "has '9223372036854775808' as its \"seed\", expected a number"),
    ],
)
def test_contents_that_cannot_be_are_refused_though_the_sums_are_right(saved, changed, message):
    run, path, bookmark = saved
    replace(bookmark, **changed).save(path, run.model)
    refused(path, run.model, message)


def test_a_state_of_other_sizes_is_refused(saved):
    run, path, bookmark = saved
    replace(bookmark, state=run.model.zero_state(2)).save(path, run.model)
    refused(path, run.model, r"holds no state h \[2, 1, 6\] of this model")


def test_a_file_is_replaced_and_loads_through_a_run(saved, tmp_path):
    run, path, _ = saved
    save_model(tmp_path / "model", run.model, run.tokenizer)
    loaded = load(tmp_path / "model")
    writing = generate(loaded, state=Bookmark.load(path, loaded.model), max_tokens=5)
    list(writing)
    writing.bookmark().save(path, loaded.model)
    assert Bookmark.load(path, run.model).drawn == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "state"]
