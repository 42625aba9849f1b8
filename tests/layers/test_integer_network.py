import copy

import pytest
import torch
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.layers import GhostBatchNorm, QuantizedBatchNorm, Quantizer, float_twin, quantize_batch_norm
from bigbatch.layers.quantized_batch_norm import first_mismatch
from bigbatch.tasks.data.digits import MEAN, STD, digits


def pixels(splits_part):
    inputs, labels = splits_part.tensors
    return (inputs * STD + MEAN).round().long(), labels


def cnn(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Identity()),
        *(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias), GhostBatchNorm(8, ghost_batch=32), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Linear(32, 24, bias=bias), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)),
    )


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def trained(model, inputs, labels, updates=60):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        index = torch.randint(len(inputs), (128,), generator=generator)
        nn.functional.cross_entropy(model(inputs[index].float()), labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module", params=[cnn, mlp], ids=["cnn", "mlp"])
def nets(request):
    """Trained on digits, its twin and its integers."""
    inputs, labels = pixels(digits().train)
    model = trained(request.param(), inputs, labels)
    twin = float_twin(model, inputs[:500])
    return model, twin, quantize_batch_norm(twin, hi=16)


def test_a_network_predicts_as_its_twin_in_every_logit_and_about_as_well_as_the_floats(nets):
    model, twin, network = nets
    inputs, labels = pixels(digits().test)
    logits = network(inputs)
    assert logits.dtype == torch.int64
    assert torch.equal(logits.double(), twin(inputs.double()))
    right, rounded = ((out.argmax(1) == labels).double().mean() for out in (model(inputs.float()), logits))
    assert right > 0.9
    assert rounded > right - 0.02


def test_also_on_inputs_that_no_camera_took(nets):
    _, twin, network = nets
    inputs = torch.randint(0, 2, (500, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 16
    assert torch.equal(network(inputs).double(), twin(inputs.double()))


def in_float64(twin, name):
    """What the twin does with the sums of a channel, as a function of integers (n, C)."""
    layers = dict(twin.named_children())
    number, before = int(name), layers[str(int(name) - 1)].bias
    tail = nn.Sequential(layers[name], layers[str(number + 1)], layers[f"{number + 1}_levels"])

    def levels(X):
        x = X.double() + (0.0 if before is None else before.detach())
        return tail(x.view(*X.shape, 1, 1) if isinstance(layers[name], nn.BatchNorm2d) else x).view(X.shape)

    return levels


def test_every_level_of_every_channel_is_the_twins_for_every_sum_that_can_be(nets):
    _, twin, network = nets
    narrow = {n: m for n, m in network.named_children() if isinstance(m, QuantizedBatchNorm) and m.hi.max() < 2**17}
    assert narrow
    for name, layer in narrow.items():
        assert first_mismatch(layer, in_float64(twin, name)) is None


def test_integers_throughout_and_a_state_that_comes_back(nets, tmp_path):
    model, _, network = nets
    assert all(values.dtype == torch.int64 for values in network.state_dict().values())
    assert all(not values.is_floating_point() for values in (*network.parameters(), *network.buffers()))
    torch.save(network.state_dict(), tmp_path / "network.pt")
    inputs, _ = pixels(digits().test)
    again = quantize_batch_norm(float_twin(type(model)(*copy.deepcopy(list(model))), inputs), hi=16)  # other steps, other integers
    again.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert torch.equal(again(inputs), network(inputs))


def test_the_model_is_left_as_it_is(nets):
    inputs, labels = pixels(digits().train)
    model = trained(mlp(), inputs, labels, updates=2)
    before = copy.deepcopy(model.state_dict())
    twin = float_twin(model, inputs[:50])
    state = copy.deepcopy(twin.state_dict())
    quantize_batch_norm(twin, hi=16)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(state[k], v) for k, v in twin.state_dict().items())


def test_hand_worked():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, eps=0.0), nn.ReLU(), nn.Linear(1, 1)).eval()
    model[0].weight.data, model[0].bias.data = torch.tensor([[0.5, -1.0]]), torch.tensor([1.0])
    model[1].running_mean, model[1].running_var = torch.tensor([0.5]), torch.tensor([4.0])
    model[3].weight.data, model[3].bias.data = torch.tensor([[-3.0]]), torch.tensor([0.3])
    twin = float_twin(model, torch.tensor([[255.0, 0.0]]))  # its activation: (127.5 + 1 - 0.5) / 2 = 64, which is level 255
    assert twin[0].weight.tolist() == [[64.0, -127.0]]  # times 127; 63.5 is rounded to even
    assert (twin[0].bias.item(), twin[1].running_mean.item(), twin[1].running_var.item()) == (127.0, 63.5, 4 * 127**2)
    assert twin[3].step.item() == 64 / 255
    assert (twin[4].weight.item(), twin[4].bias.item()) == (-127.0, 51.0)  # 0.3 times 127 / 3, in levels of 64 / 255: 50.6
    network = quantize_batch_norm(twin)
    x = torch.tensor([[100, 20]])  # (6400 - 2540 + 127 - 63.5) / 254 = 15.447, in levels: 61.5466
    assert network[:3](x).item() == 62
    assert network(x).item() == -127 * 62 + 51


def test_layers_without_batch_norm_between_them():
    """Their scales multiply; a pool, a flattening or another layer may come before the batch norm that takes them up."""
    torch.manual_seed(0)
    inputs = torch.randint(0, 16, (100, 1, 8, 8))
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 6, 1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 5),
        nn.Linear(5, 3),
    )
    model(inputs.float())
    twin = float_twin(model.eval(), inputs)
    network = quantize_batch_norm(twin, hi=15)
    outputs, real = network(inputs), model(inputs.float())
    assert torch.equal(outputs.double(), twin(inputs.double()))
    ratio = outputs.double().std() / real.double().std()
    assert (outputs / ratio - real).abs().max() < 0.05 * real.abs().max()


def test_bits_of_two_and_negative_inputs():
    torch.manual_seed(0)
    inputs = torch.randint(-128, 128, (200, 1, 8, 8))
    model = trained(mlp(), inputs, torch.randint(10, (200,)), updates=5)
    twin = float_twin(model, inputs, bits=2)
    network = quantize_batch_norm(twin, lo=-128, hi=127, accumulator=torch.int32)
    assert twin[1].weight.abs().max() == 1
    assert network(inputs).dtype == torch.int32
    assert torch.equal(network(inputs).double(), twin(inputs.double()))


def test_training_with_quantised_activations():
    """A model that has quantisers already keeps them."""
    inputs, labels = pixels(digits().train)
    model = nn.Sequential(*mlp()[:4], Quantizer(0.02), nn.Linear(32, 10))
    trained(model, inputs, labels, updates=10)
    twin = float_twin(model, inputs)
    network = quantize_batch_norm(twin, hi=16)
    assert [type(layer).__name__ for layer in twin].count("Quantizer") == 1
    assert torch.equal(network(inputs).double(), twin(inputs.double()))


def test_gradients_pass_straight_through_a_quantiser_where_it_does_not_clip():
    x = torch.tensor([-1.0, 0.3, 0.8, 1.6, 9.0], requires_grad=True)
    levels = Quantizer(0.5, bits=2)(x)
    levels.sum().backward()
    assert levels.tolist() == [0, 1, 2, 3, 3]
    assert x.grad.tolist() == [0, 2, 2, 0, 0]


def test_inputs_must_be_integers_in_range(nets):
    network = nets[2]
    with pytest.raises(UserError, match="input of torch.float64: must be of integers; round it first"):
        network(torch.zeros(1, 1, 8, 8).double())
    with pytest.raises(UserError, match="inputs from 5 to 4: lo must not exceed hi; swap them"):
        quantize_batch_norm(nets[1], lo=5, hi=4)
    with pytest.raises(UserError, match=r"input from 0 to 17: must lie in 0..16, for which the network was built"):
        network(torch.arange(18).repeat(4)[:64].view(1, 1, 8, 8))


def whole(*layers):
    """With weights of one and zero bias."""
    net = nn.Sequential(*layers).double().eval()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(2, 2), "a Linear: must be an nn.Sequential of Conv2d, Linear, .*; residual nets add what has different steps"),
        (whole(nn.Linear(2, 2), nn.LayerNorm(2)), "layer 1: unknown layer LayerNorm; known are Conv2d, Linear, batch norm, ReLU"),
        (whole(nn.Linear(2, 2), nn.BatchNorm1d(2).train(), Quantizer(1.0)).train(), "layer 1: batch norm in training mode"),
        (whole(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2)), "layer 1: a batch norm without a Quantizer behind it"),
        (whole(nn.Linear(2, 2), nn.ReLU()), "layer 1: ReLU without a batch norm before it; put one there"),
        (whole(Quantizer(0.1)), "layer 0: Quantizer without a batch norm before it"),
        (nn.Sequential(nn.Linear(2, 2)), r"layer 0: weight is not of integers; round it with bigbatch.layers.float_twin"),
        (whole(nn.BatchNorm1d(2, eps=0.0), Quantizer(2.0 / 3)), None),
    ],
)
def test_what_can_not_be_quantised(net, message):
    if message is None:  # X 3/2 + 1/2 in exact arithmetic of the float64 1.5 and 2/3: nothing half-way is rounded differently
        quantize_batch_norm(net)
        return
    with pytest.raises(UserError, match=message):
        quantize_batch_norm(net)


def test_half_way_values_that_float64_rounds_otherwise_are_refused():
    net = whole(nn.BatchNorm1d(1, eps=0.0), Quantizer(1.0))
    net[0].weight.data.fill_(0.3)  # 5 * 0.3 is 1.5 in float64, and a little less in exact arithmetic
    with pytest.raises(UserError, match="layer 0: channel 0: X = 5 falls half-way between two levels, and float64 rounds it to 2, exact"):
        quantize_batch_norm(net)


def test_sums_that_the_accumulator_does_not_hold():
    net = whole(nn.Linear(100, 2))
    nn.init.constant_(net[0].weight, 2.0**20)
    with pytest.raises(UserError, match="layer 0: sums reach 26,738,688,000: must not pass 2,147,483,647 in torch.int32; take torch.int64"):
        quantize_batch_norm(net, accumulator=torch.int32)
    nets = whole(nn.Linear(100, 2), nn.BatchNorm1d(2), Quantizer(0.01))
    nn.init.constant_(nets[0].weight, 127.0)
    nets[1].running_var.fill_(1e12)
    with pytest.raises(UserError, match="layer 1: channel 0: A = .* torch.int32 holds"):
        quantize_batch_norm(nets, accumulator=torch.int32)


def test_what_can_not_be_rounded():
    with pytest.raises(UserError, match="bits = 1: must lie from 2 to 16"):
        float_twin(mlp(), torch.zeros(2, 64), bits=1)
    with pytest.raises(UserError, match="layer 1: a batch norm without ReLU behind it"):
        float_twin(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.ones(2, 4))
    with pytest.raises(UserError, match="layer 0: a batch norm without running statistics"):
        float_twin(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()), torch.ones(2, 4))
    with pytest.raises(UserError, match="layer 1: ReLU without a batch norm before it; put one there"):
        float_twin(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 4))
    with pytest.raises(UserError, match="step = 0: must be a finite number above zero"):
        Quantizer(0)
