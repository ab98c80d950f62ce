import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from segmodel.core.errors import CheckpointError
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard, TrainerState
from segmodel.models.registry import ModelSettings, build_model

CLASSICAL = ModelSettings(arch="classical", channels=3, width=2)
DYNAMIC = ModelSettings(arch="dynamic", channels=3, encoder="resnet18")


def card_of(settings: ModelSettings) -> ModelCard:
    return ModelCard(
        model=settings,
        channels=("pre-contrast", "FLAIR", "post-contrast"),
        image_size=32,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        threshold=0.35,
        training_patients=("A", "B"),
        validation_patients=("C",),
        metrics={"dice": 0.875},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    checkpoint.save(str(tmp_path), build_model(CLASSICAL), card_of(CLASSICAL))
    return tmp_path


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("settings", [CLASSICAL, DYNAMIC])
def test_a_loaded_network_gives_the_same_logits_to_the_bit(
    settings: ModelSettings, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build_model(settings)
    x_nchw = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model.train()(x_nchw)  # moves the running means of a batch norm away from where they start
        expected = model.eval()(x_nchw)
        saved = checkpoint.save(str(tmp_path), model, card_of(settings))
        loaded, card = checkpoint.load(str(tmp_path))
        assert torch.equal(loaded(x_nchw), expected)
    assert not loaded.training
    assert card == saved


def test_the_card_comes_back_as_it_was_given(folder: Path) -> None:
    card = checkpoint.read_card(str(folder))
    assert card.model == CLASSICAL
    assert card.channels == ("pre-contrast", "FLAIR", "post-contrast")
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (card.image_size, card.threshold, card.training_patients) == (32, 0.35, ("A", "B"))
    assert card.validation_patients == ("C",)
    assert card.metrics == {"dice": 0.875}
    assert card.versions is not None
    assert card.versions["torch"] == torch.__version__


def test_a_patient_of_a_training_fitted_the_weights_chose_the_epoch_or_was_not_seen(
    folder: Path,
) -> None:
    card = checkpoint.read_card(str(folder))
    assert [card.seen_in_training(name) for name in "ABCD"] == [
        "train",
        "train",
        "validation",
        "no",
    ]


STATE = TrainerState(
    epochs_done=3,
    cycles=((5, 1e-3), (2, 1e-4)),
    weights={"w": torch.arange(3.0)},
    optimizer={0: {"step": torch.tensor(12.0), "exp_avg": torch.ones(2)}},
    mean=(0.5,),
    std=(0.25,),
    history=({"epoch": 1, "dice": 0.5},),
    precision="bf16",
)


def test_a_training_s_state_comes_back_as_it_was_given(tmp_path: Path) -> None:
    checkpoint.save_trainer(str(tmp_path), STATE)
    found = checkpoint.load_trainer(str(tmp_path))
    assert (found.epochs_done, found.cycles, found.mean, found.std) == (
        3,
        ((5, 1e-3), (2, 1e-4)),
        (0.5,),
        (0.25,),
    )
    assert found.weights["w"].tolist() == [0.0, 1.0, 2.0]
    assert found.optimizer[0]["step"] == 12.0
    assert found.optimizer[0]["exp_avg"].tolist() == [1.0, 1.0]
    assert found.history == ({"epoch": 1, "dice": 0.5},)
    assert found.precision == "bf16"


def test_a_training_without_state_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"trainer\.pt: no such file; .*leave --resume out"):
        checkpoint.load_trainer(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps(Path("/"))])
def test_a_state_that_cannot_be_read_safely_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "trainer.pt").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"trainer\.pt: not a training's state that can be read safely"
    ):
        checkpoint.load_trainer(str(tmp_path))


def test_a_truncated_state_is_refused(tmp_path: Path) -> None:
    checkpoint.save_trainer(str(tmp_path), STATE)
    path = tmp_path / "trainer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"trainer\.pt: not a training's state"):
        checkpoint.load_trainer(str(tmp_path))


@pytest.mark.parametrize("values", [[1], {"format_version": 2}])
def test_a_state_of_another_version_is_refused(values: object, tmp_path: Path) -> None:
    torch.save(values, tmp_path / "trainer.pt")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: of another version"):
        checkpoint.load_trainer(str(tmp_path))


def test_a_truncated_weights_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its SHA-256 is .*truncated"):
        checkpoint.load(str(folder))


def test_a_weights_file_with_one_altered_bit_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its SHA-256 is .*altered"):
        checkpoint.load(str(folder))


def test_weights_of_another_checkpoint_are_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint.save(f"{tmp_path}/other", build_model(CLASSICAL), card_of(CLASSICAL))
    (tmp_path / "other/model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="of another model"):
        checkpoint.load(str(folder))


def test_a_missing_weights_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: no such file; the checkpoint is incomplete"
    ):
        checkpoint.load(str(folder))


def test_a_missing_model_json_is_refused(folder: Path) -> None:
    (folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json: no such file"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "format version None, this version reads 1"),
        ('{"name": "left-pad", "version": "1.3.0"}', "format version None, this version reads 1"),
        ('{"format_version": 2}', "format version 2, this version reads 1"),
        ('{"format_version": 1}', "not a model.json of this project"),
    ],
)
def test_a_json_of_something_else_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"model.json: {message}"):
        checkpoint.load(str(folder))


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "model.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CheckpointError, match=r"model\.json: not JSON"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": None},
        {"mean": 0.5},
        {"model": None},
        {"model": {"arch": "classical", "depth": 5}},
    ],
)
def test_a_model_json_with_a_field_of_the_wrong_kind_is_refused(
    folder: Path, changes: dict[str, Any]
) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(CheckpointError, match=r"not a model\.json of this project"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("changes", [{"width": 3}, {"channels": 1}])
def test_weights_that_do_not_fit_the_network_are_refused(
    folder: Path, changes: dict[str, Any]
) -> None:
    edit_manifest(folder, model={"arch": "classical", "channels": 3, "width": 2, **changes})
    with pytest.raises(
        CheckpointError,
        match=r"model\.safetensors: the weights do not fit the network of model\.json",
    ):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    model = build_model(CLASSICAL)
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight.flatten()[-1] = value
    checkpoint.save(str(tmp_path), model, card_of(CLASSICAL))
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        checkpoint.load(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"arch": "vision"}, {"arch": "dynamic", "encoder": "resnet9"}, {"channels": "three"}],
)
def test_a_network_that_cannot_be_built_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_manifest(folder, model={"arch": "classical", "channels": 3, "width": 2, **changes})
    with pytest.raises(CheckpointError):
        checkpoint.load(str(folder))


def test_locate_takes_the_folder_itself(folder: Path) -> None:
    assert checkpoint.find_checkpoint(str(folder)) == str(folder)


def test_locate_takes_best_of_a_training_s_output_folder(tmp_path: Path) -> None:
    for name in ("best", "last"):
        checkpoint.save(f"{tmp_path}/{name}", build_model(CLASSICAL), card_of(CLASSICAL))
    assert checkpoint.find_checkpoint(str(tmp_path)) == f"{tmp_path}/best"


def test_locate_refuses_a_folder_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no checkpoint \(model\.json is neither here nor in best/\)"
    ):
        checkpoint.find_checkpoint(str(tmp_path))
