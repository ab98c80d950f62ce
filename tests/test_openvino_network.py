import numpy as np
import torch

from segmodel.models import ModelSettings, build_model
from segmodel.openvino_network import OpenVinoNetwork
from segmodel.predictor import Predictor
from tests import standin


def test_its_outputs_are_the_network_s_for_any_batch() -> None:
    torch.manual_seed(0)
    network = build_model(ModelSettings(arch="dynamic", channels=3, encoder="resnet18")).eval()
    other = OpenVinoNetwork(network, threads=1)
    with torch.inference_mode():
        for shape in ((1, 3, 32, 64), (3, 3, 32, 64)):
            x_nchw = torch.randn(shape)
            assert torch.allclose(other(x_nchw), network(x_nchw), rtol=1e-3, atol=2e-3)


def test_a_predictor_takes_it_for_the_network() -> None:
    pixels = np.zeros((5, 20, 32, 3), dtype=np.uint8)
    for n in range(5):
        pixels[n, 3, : 2 * n, 1] = 200
    settings = {"batch_size": 4, "threshold": 0.5, "device": torch.device("cpu"), "tta": True}
    model = standin.flair_threshold_model()
    for part in (pixels[:4], pixels[4:]):
        expected = Predictor(model, standin.card(32), **settings).predict(part)
        found = Predictor(OpenVinoNetwork(model, threads=None), standin.card(32), **settings).predict(part)
        assert (found.mask_nhw == expected.mask_nhw).all()
        assert found.tumor_pixels_n.tolist() == expected.tumor_pixels_n.tolist()
        assert np.allclose(found.uncertainty_n, expected.uncertainty_n, atol=1e-4)
