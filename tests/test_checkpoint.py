"""Models saved and loaded: the same numbers, and a sentence for every directory that is not a whole model."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from unrolled import disk
from unrolled.checkpoint import (
    CheckpointError,
    Training,
    latest,
    load,
    load_training,
    newest_whole,
    save_model,
    save_step,
)
from unrolled.disk import DiskWarning
from unrolled.manifest import MANIFEST
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer, CharTokenizer

TOKENIZER = CharTokenizer('ab "é\n')
CONFIG = ModelConfig(TOKENIZER.size, hidden=5, layers=2, embedding=3, dropout=0.25)
IDS = torch.tensor([[0, 3, 2, 5, 1]])


def model(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(config, dtype=dtype)


def training(step: int = 3) -> Training:
    return Training(
        {"step": step, "config": {"lr": 0.5}},
        {"carried.h": torch.randn(2, 4, 5), "moments": torch.zeros(0), "count": torch.tensor(7, dtype=torch.uint8)},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model(), TOKENIZER, training())
    return tmp_path / "model"


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.iterdir() if path.name.startswith("step-"))


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Replace a file and its sums in the manifest: a directory that verifies but holds something else."""
    (directory / name).write_bytes(data)
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("embedding", [0, 3])
def test_a_loaded_model_is_the_saved_one(tmp_path: Path, dtype: torch.dtype, embedding: int) -> None:
    subject = model(ModelConfig(TOKENIZER.size, hidden=5, layers=2, embedding=embedding, dropout=0.25), dtype)
    save_model(tmp_path / "model", subject, TOKENIZER)
    run = load(str(tmp_path / "model"))
    assert run.config == run.model.config == subject.config
    assert run.tokenizer == TOKENIZER
    assert run.directory == tmp_path / "model"
    assert run.training is None
    assert not run.model.training
    for name, value in subject.state_dict().items():
        assert run.model.state_dict()[name].dtype == dtype
        assert torch.equal(run.model.state_dict()[name], value), name
    assert torch.equal(run.model(IDS)[0], subject.eval()(IDS)[0])


def test_a_loaded_model_trains_on(saved: Path) -> None:
    subject = load(saved).model
    subject(IDS)[0].sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in subject.parameters())
    torch.optim.SGD(subject.parameters(), 0.1).step()
    assert not torch.equal(subject.state_dict()["lstm.proj.bias"], load(saved).model.state_dict()["lstm.proj.bias"])


def test_training_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    given = training()
    save_model(tmp_path / "model", model(), TOKENIZER, given)
    found = load_training(tmp_path / "model")
    assert found.record == given.record == load(tmp_path / "model").training
    assert found.tensors.keys() == given.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in given.tensors.items())
    save_model(tmp_path / "bare", model(), TOKENIZER)
    with pytest.raises(CheckpointError, match="was saved without its training state"):
        load_training(tmp_path / "bare")


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name, model(), TOKENIZER)
    for file in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_what_is_in_a_directory(saved: Path) -> None:
    names = ["config.json", "manifest.json", "tokenizer.json", "training.json", "training.safetensors"]
    assert sorted(os.listdir(saved)) == [*names, "weights.safetensors"]
    manifest = json.loads((saved / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted({*names, "weights.safetensors"} - {MANIFEST})
    assert manifest["torch"] == str(torch.__version__)
    assert json.loads((saved / "config.json").read_text()) == {
        "format": "unrolled-model",
        "version": 1,
        "vocabulary": 6,
        "hidden": 5,
        "layers": 2,
        "embedding": 3,
        "dropout": 0.25,
        "embedding_dropout": 0.0,
        "tie_weights": False,
    }


def test_a_tied_matrix_is_saved_once_and_tied_again(tmp_path: Path) -> None:
    tied = model(ModelConfig(TOKENIZER.size, hidden=5, layers=1, embedding=5, tie_weights=True))
    save_model(tmp_path / "tied", tied, TOKENIZER)
    names = safetensors.torch.load_file(tmp_path / "tied" / "weights.safetensors").keys()
    assert "lstm.proj.weight" in names
    assert "embedding.weight" not in names
    loaded = load(tmp_path / "tied").model
    assert loaded.embedding is not None
    assert loaded.embedding.weight is loaded.lstm.proj.weight
    assert torch.equal(loaded(IDS)[0], tied.eval()(IDS)[0])


def test_a_taken_name_and_another_tokenizer_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="is never overwritten"):
        save_model(saved, model(), TOKENIZER)
    with pytest.raises(CheckpointError, match="the tokenizer has 256 tokens and the model was built for 6"):
        save_model(saved.parent / "other", model(), ByteTokenizer())
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "weights.safetensors", "training.safetensors"])
def test_damage_in_any_file_is_named(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    for read in (load, load_training):
        with pytest.raises(CheckpointError, match=rf"{name} is not what was saved"):
            read(saved)
    (saved / name).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=rf"{name} has {len(data) - 1} bytes"):
        load(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        load(saved)


def test_a_manifest_without_a_needed_file(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["files"]["weights.safetensors"]
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"does not list weights\.safetensors; this is not a whole model"):
        load(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 9}, "is of format version 9"),
        ({"hidden": 6}, r"lstm\.layers\.1\.W_xo is \[5, 5\], expected \[6, 6\]"),
        ({"hidden": 10**15}, r"expected \[1000000000000000, 1000000000000000\]"),
        ({"layers": 3}, r"has no tensor lstm\.layers\.2\.W_xo"),
        ({"layers": 1}, r"has a tensor lstm\.layers\.1"),
        ({"embedding": 4}, r"embedding\.weight is \[6, 3\], expected \[6, 4\]"),
        ({"embedding": 0}, r"lstm\.layers\.0\.W_xf is \[3, 5\], expected \[6, 5\]"),
        ({"hidden": "5"}, r"describes no model: hidden must be an integer, got '5'"),
        ({"dropout": 3}, "describes no model: dropout=3 must be"),
        ({"heads": 3}, "describes no model: .*heads"),
        ({"vocabulary": 7}, r"tokenizer\.json has 6 tokens, and config\.json beside it says 7"),
    ],
)
def test_a_configuration_that_fits_nothing(saved: Path, fields: dict[str, object], message: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    rewrite(saved, "config.json", json.dumps({**config, **fields}).encode())
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_files_that_verify_but_are_something_else(saved: Path) -> None:
    weights = (saved / "weights.safetensors").read_bytes()
    rewrite(saved, "weights.safetensors", b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not a safetensors file"):
        load(saved)
    tensors = safetensors.torch.load(weights)
    rewrite(saved, "weights.safetensors", safetensors.torch.save({k: v.long() for k, v in tensors.items()}))
    with pytest.raises(CheckpointError, match=r"holds int64; the weights of a model are of one floating dtype"):
        load(saved)
    rewrite(saved, "weights.safetensors", safetensors.torch.save({}))
    with pytest.raises(CheckpointError, match="holds nothing"):
        load(saved)
    rewrite(saved, "weights.safetensors", weights)
    rewrite(saved, "tokenizer.json", b"{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: this is not a tokenizer file"):
        load(saved)


def test_directories_that_hold_no_model(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mdoel: there is no such directory; did you mean .*model\?"):
        load(tmp_path / "mdoel")
    with pytest.raises(CheckpointError, match="no such directory; unrolled train makes one"):
        load(tmp_path / "nowhere" / "at all")
    with pytest.raises(
        CheckpointError, match=r"config\.json is a file; pass the directory that holds the model: .*model$"
    ):
        load(saved / "config.json")
    with pytest.raises(CheckpointError, match=r"holds neither manifest\.json \(a saved model\) nor latest \(a run\)"):
        load(tmp_path)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match="has no saved model yet"):
        load(tmp_path)


def test_a_run_keeps_its_newest_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert latest(run) is None
    assert newest_whole(run) is None
    for step in (5, 10, 15, 20):
        path = save_step(run, step, model(), TOKENIZER, training(step))
        assert path == latest(run) == newest_whole(run) == run / f"step-{step:08d}"
    assert steps(run) == [10, 15, 20]
    assert (run / "latest").read_text() == "step-00000020\n"
    assert load(run).directory == run / "step-00000020"
    assert load(run).training == {"step": 20, "config": {"lr": 0.5}}
    assert load_training(run).record["step"] == 20
    assert load(run / "step-00000010").training == {"step": 10, "config": {"lr": 0.5}}
    save_step(run, 25, model(), TOKENIZER, training(25), keep=1)
    assert steps(run) == [25]


def test_the_best_stays(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save_step(tmp_path, step, model(), TOKENIZER, training(step), keep=1, best=step in (5, 10))
    assert steps(tmp_path) == [10, 20]
    assert (tmp_path / "best").read_text() == "step-00000010\n"
    for given in (load(tmp_path, "best"), load(tmp_path / "best"), load(tmp_path, which="best")):
        assert given.training == {"step": 10, "config": {"lr": 0.5}}
    assert load(tmp_path).directory == load(tmp_path / "latest").directory == tmp_path / "step-00000020"
    save_step(tmp_path, 20, model(), TOKENIZER, training(20), keep=1, best=True)
    assert steps(tmp_path) == [20]
    with pytest.raises(ValueError, match='which must be "latest" or "best", got \'bset\''):
        load(tmp_path, "bset")  # type: ignore[arg-type]


def test_a_run_without_a_best_model(tmp_path: Path) -> None:
    save_step(tmp_path, 5, model(), TOKENIZER, training(5))
    for path, which in ((tmp_path, "best"), (tmp_path / "best", "latest")):
        with pytest.raises(CheckpointError, match=r"has no best model, .*; name its newest one: .*"):
            load(path, which)


def damage(directory: Path, name: str = "weights.safetensors") -> None:
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_the_newest_whole_model_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_step(tmp_path, step, model(), TOKENIZER, training(step), best=step == 10)
    damage(tmp_path / "step-00000015", "training.safetensors")
    said = r"step-00000010 is taken in place of the newest model: .*15.training\.safetensors is not what was saved"
    with pytest.warns(DiskWarning, match=said) as record:
        assert load(tmp_path).directory.name == "step-00000010"
    assert [warning.filename for warning in record] == [__file__]
    for read in (lambda run: load_training(run).record["step"], lambda run: int(newest_whole(run).name[5:])):
        with pytest.warns(DiskWarning, match=said):
            assert read(tmp_path) == 10
    assert load(tmp_path, "best").directory.name == "step-00000010"
    damage(tmp_path / "step-00000010")
    with pytest.warns(DiskWarning, match=r"step-00000005 is taken in place of the best model: .*10.weights"):
        assert load(tmp_path, "best").directory.name == "step-00000005"
    (tmp_path / "step-00000005" / MANIFEST).unlink()
    for read in (load, load_training, newest_whole):
        with pytest.raises(CheckpointError, match=r"15.training\.safetensors is not what was saved"):
            read(tmp_path)


def test_a_damaged_model_that_is_named_is_not_replaced_by_another(tmp_path: Path) -> None:
    for step in (5, 10):
        save_step(tmp_path, step, model(), TOKENIZER, training(step))
    damage(tmp_path / "step-00000010")
    with pytest.raises(CheckpointError, match=r"is not what was saved.*use another model directory of this run"):
        load(tmp_path / "step-00000010")


def test_a_damaged_model_is_written_anew_when_training_comes_there(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_step(tmp_path, step, model(), TOKENIZER, training(step))
    for step in (10, 15):
        damage(tmp_path / f"step-{step:08d}")
    save_step(tmp_path, 10, model(), TOKENIZER, training(10))
    assert steps(tmp_path) == [5, 10], "what comes after the step is of a future that comes otherwise"
    assert load(tmp_path).directory.name == "step-00000010"
    damage(tmp_path / "step-00000010")
    save_step(tmp_path, 10, model(), TOKENIZER, training(10))
    assert load(tmp_path).directory.name == "step-00000010"


def test_an_old_model_that_can_not_be_removed_is_no_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(tmp_path, 5, model(), TOKENIZER, training(5))

    def fail(*_: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(disk, "remove_file", fail)
    with pytest.warns(DiskWarning, match="step-00000005 can't be removed: Permission denied"):
        save_step(tmp_path, 10, model(), TOKENIZER, training(10), keep=1)
    assert load(tmp_path).directory.name == "step-00000010"


def test_saving_a_step_twice_writes_once(tmp_path: Path) -> None:
    save_step(tmp_path, 5, model(), TOKENIZER, training(5))
    before = (tmp_path / "step-00000005" / MANIFEST).stat().st_mtime_ns
    save_step(tmp_path, 5, model(), TOKENIZER, training(5))
    assert (tmp_path / "step-00000005" / MANIFEST).stat().st_mtime_ns == before


def test_what_crashes_leave_is_cleared_away_and_other_files_are_not(tmp_path: Path) -> None:
    save_step(tmp_path, 5, model(), TOKENIZER, training(5))
    # Renamed, but `latest` was never written; half-written; half-removed.
    save_model(tmp_path / "step-00000010", model(), TOKENIZER)
    (tmp_path / "step-00000099").mkdir()
    (tmp_path / "step-00000010.tmp-0123abcd").mkdir()
    (tmp_path / "latest.tmp-0123abcd").write_text("step-")
    (tmp_path / "notes.txt").write_text("mine")
    assert load(tmp_path).directory.name == "step-00000005"
    save_step(tmp_path, 10, model(), TOKENIZER, training(10))
    assert sorted(os.listdir(tmp_path)) == ["latest", "notes.txt", "step-00000005", "step-00000010"]
    assert load_training(tmp_path).record["step"] == 10


def test_pointers_that_name_nothing(tmp_path: Path) -> None:
    save_step(tmp_path, 5, model(), TOKENIZER, training(5), best=True)
    for text in ("step-00000007\n", "", "../elsewhere", "\x00", "\xff" * 1000):
        for which in ("latest", "best"):
            (tmp_path / which).write_text(text, encoding="latin-1")
            with pytest.warns(DiskWarning, match=rf"step-00000005 is taken .*{which} names .*, which is not there"):
                assert load(tmp_path, which).training == {"step": 5, "config": {"lr": 0.5}}
        with pytest.raises(CheckpointError, match="which is not there; write one of these into it: step-00000005"):
            latest(tmp_path)


def test_a_run_without_latest_goes_on_from_its_newest_model(tmp_path: Path) -> None:
    """The first save of a run ended between the two renames."""
    for step in (5, 100_000_000):
        save_step(tmp_path, step, model(), TOKENIZER, training(step))
    (tmp_path / "latest").unlink()
    assert load(tmp_path).directory == newest_whole(tmp_path) == tmp_path / "step-100000000"
