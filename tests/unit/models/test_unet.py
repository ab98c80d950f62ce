import torch

from segmodel.models.cost import count_parameters
from segmodel.models.unet import ClassicalUnet, SliceDropout


def test_classical_goes_down_four_poolings_to_28x28x1024_at_448() -> None:
    shapes: list[tuple[int, ...]] = []
    with torch.device("meta"):  # shapes without arithmetic
        model = ClassicalUnet(channels=3)
        for block in model.down:
            block.register_forward_hook(
                lambda module, inputs, output: shapes.append(tuple(output.shape))
            )
        logits_nchw = model(torch.empty(1, 3, 448, 448))
    assert shapes == [
        (1, 64, 448, 448),
        (1, 128, 224, 224),
        (1, 256, 112, 112),
        (1, 512, 56, 56),
        (1, 1024, 28, 28),
    ]
    assert logits_nchw.shape == (1, 2, 448, 448)


def test_classical_has_the_number_of_weights_that_the_paper_s_layers_add_up_to() -> None:
    # Width 1, 1 channel. 3x3 convolutions have 9ab+b weights, 2x2 up-convolutions 4ab+b, the head
    # 1*2+2.
    down = (10 + 10) + (20 + 38) + (76 + 148) + (296 + 584) + (1168 + 2320)
    up = (16 * 8 * 4 + 8) + (8 * 4 * 4 + 4) + (4 * 2 * 4 + 2) + (2 * 1 * 4 + 1)
    merge = (1160 + 584) + (292 + 148) + (74 + 38) + (19 + 10)
    assert count_parameters(ClassicalUnet(channels=1, width=1)) == down + up + merge + 4


def test_classical_drops_channels_in_training_only() -> None:
    torch.manual_seed(0)
    model = ClassicalUnet(channels=1, width=4, dropout=0.5)
    x_nchw = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.train()(x_nchw), model(x_nchw))
        assert torch.equal(model.eval()(x_nchw), model(x_nchw))


def test_gradients_reach_every_weight_of_the_classical_network() -> None:
    torch.manual_seed(0)
    model = ClassicalUnet(channels=1, width=2)
    model(torch.rand(1, 1, 32, 32)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_dropout_takes_the_channels_that_a_slice_s_numbers_name() -> None:
    dropout = SliceDropout(0.25, channels=2).train()
    dropout.random_nc = torch.tensor([[0.2, 0.3], [0.25, 0.1]])
    kept = dropout(torch.full((2, 2, 1, 1), 3.0)).flatten().tolist()
    assert kept == [0.0, 4.0, 4.0, 0.0]  # 3 / (1 - 0.25) where the number is at least 0.25
