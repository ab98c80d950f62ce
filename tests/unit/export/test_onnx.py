import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import export
from segmodel.core.errors import ConfigError, ExportError
from segmodel.export import onnx as onnx_export
from segmodel.inference.predictor import Predictor
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.models.registry import ModelSettings, build_model
from tests.support import standin

ort = pytest.importorskip("onnxruntime")

DYNAMIC = ModelSettings(arch="dynamic", channels=3, encoder="resnet18")
CLASSICAL = ModelSettings(arch="classical", channels=2, width=4)


def card_of(settings: ModelSettings) -> ModelCard:
    return ModelCard(
        model=settings,
        channels=("pre-contrast", "FLAIR", "post-contrast")[: settings.channels],
        image_size=64,
        mean=(0.25,) * settings.channels,
        std=(0.5,) * settings.channels,
        threshold=0.4,
        training_patients=("SECRET_1",),
        validation_patients=(),
        metrics={},
    )


@pytest.mark.parametrize("settings", [CLASSICAL, DYNAMIC], ids=lambda settings: settings.arch)
def test_onnx_logits_equal_pytorch_s_for_any_batch_and_size(
    settings: ModelSettings, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build_model(settings).eval()
    checkpoint.save(str(tmp_path / "best"), model, card_of(settings))
    file = tmp_path / "model.onnx"
    onnx_export.export_onnx(str(tmp_path), str(file))
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for shape in ((1, 32, 32), (3, 64, 32), (5, 32, 96)):
        x = torch.randn(shape[0], settings.channels, *shape[1:])
        with torch.inference_mode():
            expected = model(x).numpy()
        (logits,) = session.run(None, {"image": x.numpy()})
        assert logits.shape == (shape[0], 2, *shape[1:])
        assert np.abs(logits - expected).max() < 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The stand-in's checkpoint, and the file that the job made of it in place of another."""
    folder = tmp_path_factory.mktemp("onnx")
    model = standin.save(str(folder / "model"), 48, training_patients=("SECRET_1",))
    file = folder / "model.onnx"
    file.write_text("mine")
    command = ["--format", "onnx", "--checkpoint", model, "--output", str(file)]
    with pytest.raises(ConfigError, match="--overwrite"):
        export.main(command)
    assert file.read_text() == "mine"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert export.main([*command, "--overwrite"]) == 0
    assert f"{file}: 0." in printed.getvalue()
    return model, file


def test_its_metadata_alone_lead_to_the_predictor_s_masks(exported: tuple[str, Path]) -> None:
    """40 pixels high: padded to 64. The stand-in finds FLAIR above 190."""
    folder, file = exported
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    pixels = np.random.default_rng(0).choice([20, 170, 200], (2, 40, 48, 3)).astype(np.uint8)
    mean, std = (np.array(json.loads(about[name]), np.float32) for name in ("mean", "std"))
    x = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    multiple = json.loads(about["size_multiple"])
    x = np.pad(x, ((0, 0), (0, 0), (0, -40 % multiple), (0, -48 % multiple)))
    (logits,) = session.run(None, {"image": x})
    tumor = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])) > json.loads(about["threshold"])
    assert (tumor[:, :40, :48] == (pixels[..., standin.FLAIR] == 200)).all()
    model, card = checkpoint.load(folder)
    predictor = Predictor(
        model, card, batch_size=2, threshold=card.threshold, device=torch.device("cpu")
    )
    assert (tumor[:, :40, :48] == predictor.predict(pixels).mask_nhw).all()
    assert json.loads(about["channels"]) == list(standin.CHANNELS)
    assert json.loads(about["image_size"]) == 48
    assert about["weights_sha256"] == card.weights_sha256
    assert b"SECRET_1" not in file.read_bytes()


def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(ConfigError, match=r"no_such_runtime: .*pip install onnx no_such_runtime"):
        onnx_export.export_onnx(str(tmp_path), str(tmp_path / "model.onnx"))


def test_a_file_that_computes_something_else_is_not_written(
    exported: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = exported
    right = onnx_export.run_onnx
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *given: file.read_bytes())
    monkeypatch.setattr(onnx_export, "run_onnx", lambda *given: right(*given) + 0.1)
    with pytest.raises(ExportError, match=r"differ from PyTorch's by 0\.1"):
        onnx_export.export_onnx(folder, str(tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/proc/model.onnx", "No such file or directory"),
        ("file/model.onnx", "Not a directory|File exists"),
        ("folder", "it is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_conversion(
    name: str,
    said: str,
    exported: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *given: pytest.fail("converted"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    output = str(tmp_path / name)
    flags = ["--format=onnx", f"--checkpoint={exported[0]}", f"--output={output}", "--overwrite"]
    with pytest.raises(ConfigError, match=rf"{output} cannot be written \(({said})\)\. Give"):
        export.main(flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--format", "onnx", "--checkpoint", "/m", "--tracking", "tensorboard"],
            "--tracking tensorboard does not go",
        ),
        (["--format", "onnx"], "needs --checkpoint"),
        (["--format", "onnx", "--checkpoint", "/m", "--patients", "A"], "--patients does not go"),
        (["--format", "nifti", "--archive", "/a", "--checkpoint", "/m"], "needs --segmentation"),
    ],
)
def test_flags_of_another_format_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export.main([*flags, "--output", "/somewhere"])
