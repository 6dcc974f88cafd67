"""Units are found in any graph, rewritten without a trace in what the model computes, and brought back to one form."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearstamp import canonical_form
from clearstamp.attacks import (
    BatchNormRescaling,
    Composed,
    DummyUnits,
    MimicUnits,
    NormInputRescaling,
    Permutation,
    Rescaling,
    Scene,
    SilentUnits,
    SplitUnits,
)
from clearstamp.attacks.preserving import Rewriting
from clearstamp.errors import AttackError
from clearstamp.stamp import Stamp
from clearstamp.transpose import transpose
from clearstamp.transposed.graph import Graph, capture
from clearstamp.units import canonical
from clearstamp.units.canonical import Vectors, merged
from clearstamp.units.spaces import find_groups, find_spaces

SHAPE = (1, 12, 12)
EXAMPLE = torch.zeros(1, *SHAPE)


def chain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(54, 16), nn.ReLU(), nn.Linear(16, 4)),
    )


class Block(nn.Module):
    """A residual block of two convolutions, each with its norm."""

    def __init__(self, width: int):
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(width, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.b_norm = nn.Conv2d(6, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b_norm(self.b(torch.relu(self.a_norm(self.a(x))))))


def residual() -> nn.Module:
    stem = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*stem, Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Growth(nn.Module):
    """A dense block's layer: norm, ReLU, convolution, and the result beside what came in."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 5, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


def dense() -> nn.Module:
    stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
    head = nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 9, 4)
    return nn.Sequential(stem, Growth(6), Growth(11), *head)


class Gated(nn.Module):
    """An inverted bottleneck: a depthwise convolution, and a gate for each channel."""

    def __init__(self):
        super().__init__()
        self.expand, self.depth, self.norm = (
            nn.Conv2d(6, 10, 1),
            nn.Conv2d(10, 10, 3, 1, 1, groups=10),
            nn.BatchNorm2d(10),
        )
        self.squeeze, self.excite, self.back = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1), nn.Conv2d(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.depth(torch.relu(self.expand(x)))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.back(y * gate)


def mobile() -> nn.Module:
    stem = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Hardswish()
    return nn.Sequential(*stem, Gated(), Gated(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def grouped() -> nn.Module:
    layers = nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.PReLU(8), nn.Conv2d(8, 6, 3)
    return nn.Sequential(*layers, nn.LeakyReLU(), nn.Flatten(), nn.Linear(6, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    each.__name__: each for each in (chain, residual, dense, mobile, grouped)
}
every_network = pytest.mark.parametrize("network", NETWORKS)
REWRITINGS = [
    *(Permutation(), Rescaling(), BatchNormRescaling(), NormInputRescaling()),
    *(DummyUnits(), DummyUnits(outgoing="cancelling", strength=1.0), MimicUnits()),
    *(SplitUnits(), SplitUnits(part=3.0), SplitUnits(part=-2.0)),
]


def randomised(model: nn.Module) -> nn.Module:
    """Biases, norms and running statistics that no test could take for a default."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += 0.2 * torch.rand_like(tensor)
    return model.eval()


@torch.no_grad()
def rewritten(model: nn.Module, *attacks: Rewriting, example: Tensor | Graph = EXAMPLE) -> nn.Module:
    model = copy.deepcopy(model)
    spaces = find_spaces(model, example)
    for attack in attacks:
        attack.rewrite(spaces)
    return model


@cache
def graph(network: str) -> Graph:
    return capture(NETWORKS[network](), EXAMPLE)


def shown(model: nn.Module, example: Tensor | Graph = EXAMPLE) -> Tensor:
    back = transpose(model, example, readout="adjoint")
    return back(5 * torch.randn(5, *back.key_shape, generator=torch.Generator().manual_seed(0)).to(back.dtype)).detach()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def sizes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in (*model.parameters(), *model.buffers())]


def found(model: nn.Module, example: Tensor = EXAMPLE) -> list[tuple[int, int, int]]:
    """For each space: its units, in how many places they stand, and how many layers read them."""
    return [(space.units, len(space.moved), len(space.readers)) for space in find_spaces(model, example)]


# ------------------------------------------------------------------------------------------------------------ finding


def test_units_of_a_chain_stand_in_their_layer_its_norm_and_the_next_layer():
    assert found(chain()) == [(4, 4, 1), (6, 2, 1), (16, 2, 1)]
    assert [space.readers[0].index.shape[1] for space in find_spaces(chain(), EXAMPLE)] == [1, 9, 1]


def test_a_residual_stream_is_one_space_with_all_that_is_added_to_it():
    stream, first, second = find_spaces(residual(), EXAMPLE)
    assert (stream.units, len(stream.writers), len(stream.readers)) == (8, 3, 3)
    assert (first.units, len(first.writers), len(first.readers)) == (6, 1, 1)
    assert (second.units, len(second.writers), len(second.readers)) == (6, 1, 1)


def test_concatenated_units_are_read_at_their_places():
    stem, first, second = find_spaces(dense(), EXAMPLE)
    assert [place.index[:, 0].tolist() for place in stem.readers[:2]] == [[*range(6)], [*range(6)]]
    assert [place.index[0].tolist() for place in first.readers] == [[6], [*range(54, 63)]]
    assert second.readers[0].index[0, 0] == 99


def test_a_depthwise_layer_and_a_gate_belong_to_the_channels_that_they_act_on():
    stream, inner, squeezed, *_ = find_spaces(mobile(), EXAMPLE)
    assert (stream.units, len(stream.writers), len(stream.readers)) == (6, 3, 3)
    assert (inner.units, len(inner.writers), len(inner.readers)) == (10, 3, 2)
    assert (squeezed.units, len(squeezed.writers), len(squeezed.readers)) == (4, 1, 1)


def test_units_of_different_groups_do_not_mix():
    spaces = find_spaces(grouped(), EXAMPLE)
    assert [(space.units, space.rigid) for space in spaces] == [(4, True)] * 4 + [(6, False)]


def bundled() -> nn.Module:
    """Two grouped convolutions in a chain, of four groups each, and a batch norm between them."""
    grouped_twice = (
        nn.Conv2d(8, 12, 3, groups=4),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1, groups=4, bias=False),
    )
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), *grouped_twice, nn.Flatten(), nn.Linear(72, 4))


@torch.no_grad()
def test_groups_change_places_as_a_whole_through_all_their_convolutions():
    model = randomised(bundled()).double()
    changed = copy.deepcopy(model)
    (groups,) = find_groups(find_spaces(changed, EXAMPLE.double()))
    assert [[space.units for space in spaces] for spaces in groups.members] == [[2, 3, 2]] * 4
    groups.permute(torch.tensor([2, 0, 3, 1]))
    inputs = torch.rand(8, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(changed(inputs), model(inputs), rtol=1e-12, atol=1e-12)
    for layer in (0, 2, 3, 5, 7):
        assert not torch.equal(changed[layer].weight, model[layer].weight)
    assert torch.equal(changed[2].weight[:3], model[2].weight[6:9]), "the first group has the third one's kernels"
    assert torch.equal(changed[5].weight[:2], model[5].weight[4:6]), "also in the second convolution"


class Attending(nn.Module):
    """Rows of an image attend to each other by three heads; with a `mask`, each head by its own."""

    def __init__(self, mask: bool = False):
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(12, 12) for _ in range(3))
        self.out, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.mask = nn.Parameter(torch.randn(1, 3, 12, 12)) if mask else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.squeeze(1)
        q, k, v = (each(rows).unflatten(2, (3, 4)).transpose(1, 2) for each in (self.queries, self.keys, self.values))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.head(torch.relu(self.out(y.transpose(1, 2).flatten(2))).mean(1))


@torch.no_grad()
def test_heads_change_places_as_a_whole():
    model = randomised(Attending()).double()
    changed = copy.deepcopy(model)
    (heads,) = find_groups(find_spaces(changed, EXAMPLE.double()))
    heads.permute(torch.tensor([2, 0, 1]))
    inputs = torch.rand(8, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(changed(inputs), model(inputs), rtol=1e-12, atol=1e-12)
    for layer in ("queries", "keys", "values"):
        rows = [getattr(each, layer).weight for each in (changed, model)]
        assert torch.equal(rows[0][:4], rows[1][8:])
    assert torch.equal(changed.out.weight[:, :4], model.out.weight[:, 8:])


@torch.no_grad()
@pytest.mark.parametrize("mask", [False, True])
def test_units_of_a_head_stay_together_also_where_a_mask_tells_heads_apart(mask):
    model = randomised(Attending(mask)).double()
    spaces, before = find_spaces(model, EXAMPLE.double()), model(EXAMPLE.double())
    assert [space.units for space in spaces] == [4] * 6 + [12] and len(find_groups(spaces)) == (not mask)
    torch.manual_seed(0)
    weights = model.values.weight.clone()
    Permutation().rewrite(spaces)
    Rescaling().rewrite(spaces)
    assert distance(model.values.weight, weights) > 0.1
    torch.testing.assert_close(model(EXAMPLE.double()), before, rtol=1e-12, atol=1e-12)


class LayerScaled(nn.Module):
    """A residual branch times, and plus, a number for each channel, as in later vision transformers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(144, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 4)
        self.gamma, self.beta = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1))
        return self.d(y + (self.c(torch.relu(self.b(y))) * self.gamma + self.beta))


@torch.no_grad()
def test_a_number_for_each_channel_may_have_no_other_axis():
    model = LayerScaled().double()
    torch.manual_seed(0)
    changed = rewritten(model, DummyUnits(), Permutation(), example=EXAMPLE.double())
    back = canonical_form(changed, EXAMPLE.double())
    assert sizes(back) == sizes(model) != sizes(changed)
    inputs = torch.rand(8, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(back(inputs), model(inputs), rtol=1e-9, atol=1e-9)
    for a, b in zip(tensors(back), tensors(canonical_form(model, EXAMPLE.double())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class Sliding(nn.Module):
    """A gate for each channel, by a kernel that slides over channels (efficient channel attention)."""

    def __init__(self):
        super().__init__()
        self.a, self.slide, self.b = nn.Conv2d(1, 8, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        gates = torch.sigmoid(self.slide(y.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)
        return self.b((y * gates).mean((2, 3)))


def test_channels_over_which_a_kernel_slides_stay_as_they_are():
    assert find_spaces(Sliding(), EXAMPLE) == []


def test_rows_are_compared_part_by_part_as_all_at_once(monkeypatch):
    vectors, values = Vectors(2, 1e-4, None), torch.randn(40, 5, dtype=torch.float64)
    values = torch.cat([values, values[:25] + 1e-6, values[30:] - 1e-6])
    expected = [*range(40), *range(25), *range(30, 40)]
    for at_once in (1, 7, 75, 1024):
        monkeypatch.setattr(canonical, "AT_ONCE", at_once)
        assert vectors.classes(values).tolist() == expected
    assert vectors.classes(values[:0]).tolist() == []


class HalfRead(nn.Module):
    """Of two groups the first is read once more."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Conv2d(2, 8, 3),
            nn.Conv2d(8, 8, 3, groups=2),
            *(nn.Linear(inputs, 4) for inputs in (128, 144)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.c(self.b(y).flatten(1)) + self.d(y[:, :4].flatten(1))


@pytest.mark.parametrize(
    "network",
    [
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.Flatten(), nn.Linear(288, 4)),
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 6, groups=2), nn.Flatten()),
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 6, groups=2)
        ),
        HalfRead,
    ],
    ids=["reads the image", "gives the answer", "shuffled", "half of it read"],
)
@torch.no_grad()
def test_groups_that_are_not_alike_stay_where_they_are(network):
    model, example = network().double().eval(), torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    spaces = find_spaces(model, example)
    assert spaces and find_groups(spaces) == []
    inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    before = model(inputs)
    Permutation().rewrite(spaces)
    torch.testing.assert_close(model(inputs), before, rtol=1e-12, atol=1e-12)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(144, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x.flatten(1)))
        return self.b(y.reshape(-1, 2, 4).transpose(1, 2).reshape(-1, 8))


def test_shuffled_channels_are_followed_and_their_number_stays():
    (space,) = find_spaces(Shuffled(), EXAMPLE)
    assert space.rigid and space.readers[0].index[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda self, y: torch.cumsum(y, 1),
        lambda self, y: y.softmax(1),
        lambda self, y: y * torch.arange(8.0),
        lambda self, y: y @ self.b.weight.new_ones(8, 8),
        lambda self, y: y.sort(1).values,
    ],
    ids=["cumulative sum", "softmax", "constants", "constant matrix", "sorted"],
)
def test_what_is_not_understood_is_left_alone(spoil):
    class Odd(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(spoil(self, self.a(x.flatten(1))))

    assert find_spaces(Odd(), EXAMPLE) == []


def test_weights_that_are_shared_are_left_alone():
    class Twice(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x.flatten(1)).relu()
            return self.b(y) + self.b(y.tanh())

    class Tied(Shuffled):
        def __init__(self):
            super().__init__()
            self.c = nn.Linear(144, 8)
            self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.flatten(1)).relu()) + self.c(x.flatten(1))[:, :4]

    assert find_spaces(Twice(), EXAMPLE) == [] == find_spaces(Tied(), EXAMPLE)


# ---------------------------------------------------------------------------------------------------------- rewriting


@pytest.mark.parametrize("attack", REWRITINGS, ids=repr)
@every_network
def test_rewriting_changes_weights_and_no_answer(network, attack):
    model = randomised(NETWORKS[network]()).double()
    inputs = torch.rand(8, *SHAPE, dtype=torch.float64)
    try:
        changed = rewritten(model, attack, example=graph(network))
    except AttackError:
        missing = {
            "Rescaling": ("residual", "dense"),
            "BatchNormRescaling": ("grouped",),
            "NormInputRescaling": ("grouped",),
        }
        assert network in missing[type(attack).__name__]
        return
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(*map(tensors, (model, changed)), strict=True)
    )
    torch.testing.assert_close(changed(inputs), model(inputs), rtol=1e-9, atol=1e-9)


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@every_network
def test_the_form_of_composed_rewritings_is_that_of_the_model_tensor_by_tensor(network):
    model = randomised(NETWORKS[network]())
    form, picture = canonical_form(model, graph(network)), shown(model, graph(network))
    for seed in range(4):
        torch.manual_seed(seed)
        changed = rewritten(model, Composed(share=0.3), example=graph(network))
        assert network == "grouped" or sizes(changed) != sizes(model)
        back = canonical_form(changed, EXAMPLE)
        assert sizes(back) == sizes(form) == sizes(model)
        for a, b in zip(tensors(back), tensors(form), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert distance(shown(back, graph(network)), picture) < 1e-4


@every_network
def test_the_canonical_form_computes_the_same_and_shows_the_same(network):
    model = randomised(NETWORKS[network]())
    before, inputs = copy.deepcopy(model), torch.rand(8, *SHAPE)
    form = canonical_form(model, graph(network))
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, (model, before)), strict=True))
    torch.testing.assert_close(form(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    assert distance(shown(form, graph(network)), shown(model, graph(network))) < 1e-5
    again = canonical_form(form, graph(network))
    for a, b in zip(tensors(again), tensors(form), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sizes_that_layers_tell_of_themselves_are_corrected():
    changed = rewritten(randomised(mobile()), DummyUnits(share=1.0))
    for module in changed.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels) == (
                len(module.weight),
                module.weight.shape[1] * module.groups,
            )
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_var)
    assert changed[3].depth.groups == changed[3].depth.in_channels == 20


# ------------------------------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize(
    "attacks",
    [
        (DummyUnits(outgoing="cancelling"),),
        (DummyUnits(outgoing="zero"),),
        (SplitUnits(part=3.0),),
        (SplitUnits(part=-2.0), Rescaling()),
        (DummyUnits(outgoing="cancelling"), Rescaling(), SplitUnits(part=3.0), Rescaling(factor=64.0)),
        (BatchNormRescaling(), SplitUnits(part=3.0)),
    ],
    ids=repr,
)
def test_merging_undoes_units_that_cancel_or_were_split(attacks):
    model = randomised(chain())
    changed = rewritten(model, *attacks)
    whole = merged(changed, EXAMPLE)
    assert sizes(whole) == sizes(model)
    inputs = torch.rand(16, *SHAPE)
    torch.testing.assert_close(whole(inputs), changed(inputs), rtol=1e-3, atol=1e-4)
    assert distance(shown(whole), shown(model)) < 1e-4
    if attacks != (DummyUnits(outgoing="zero"),):
        assert distance(shown(changed), shown(model)) > 1e-2


class Stream(nn.Module):
    """A stream that an addition reads, of linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.f, self.h = nn.Linear(144, width), nn.Linear(width, 8)
        self.g, self.o = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(x.flatten(1)).relu()
        return self.o((x + self.g(self.h(x).relu())).relu())


@torch.no_grad()
def test_two_units_that_cancel_on_a_residual_stream_are_taken_out_of_it():
    """Written out by hand, since whoever adds them need not use this library."""
    model, wide = Stream(16), Stream(18)
    for parameter in wide.parameters():
        parameter.zero_()
    row, read, out = torch.randn(144), torch.randn(8), 5 * torch.randn(4)
    for layer, columns in (("f", 144), ("h", 16), ("g", 8), ("o", 16)):
        own, theirs = getattr(wide, layer), getattr(model, layer)
        own.weight[: len(theirs.weight), :columns] = theirs.weight
        own.bias[: len(theirs.bias)] = theirs.bias
    wide.f.weight[16:] = row
    wide.h.weight[:, 16], wide.h.weight[:, 17] = read, -read
    wide.o.weight[:, 16], wide.o.weight[:, 17] = out, -out
    inputs = torch.rand(8, *SHAPE)
    torch.testing.assert_close(wide(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    assert distance(shown(wide), shown(model)) > 0.5
    whole = merged(wide, EXAMPLE)
    assert sizes(whole) == sizes(model)
    assert distance(shown(whole), shown(model)) < 1e-5


@torch.no_grad()
def test_units_that_are_equal_up_to_where_they_are_read_are_folded_there_alone():
    model = Stream(6)
    model.f.weight[5], model.f.bias[5] = 2 * model.f.weight[1], 2 * model.f.bias[1]
    whole = merged(model, EXAMPLE)
    torch.testing.assert_close(whole.h.weight[:, 1], model.h.weight[:, 1] + 2 * model.h.weight[:, 5])
    assert not whole.h.weight[:, 5].any()
    assert torch.equal(whole.o.weight, model.o.weight), "behind the addition they differ"


def test_a_model_without_equal_units_stays_as_it_is():
    for network in NETWORKS:
        model = randomised(NETWORKS[network]())
        whole = merged(model, graph(network))
        assert whole is not model
        for a, b in zip(*map(tensors, (model, whole)), strict=True):
            assert torch.equal(a, b)


@torch.no_grad()
def test_multiples_are_merged_behind_a_relu_but_not_behind_a_tanh():
    for activation, factor, units in ((nn.ReLU(), 2, 3), (nn.Tanh(), 2, 4), (nn.Tanh(), 1, 3), (nn.ReLU(), -1, 4)):
        net = nn.Sequential(nn.Linear(5, 4), activation, nn.Linear(4, 2))
        net[0].weight[3], net[0].bias[3] = factor * net[0].weight[1], factor * net[0].bias[1]
        whole = merged(net, torch.zeros(1, 5))
        assert (whole[0].out_features, whole[2].in_features) == (units, units)
        inputs = torch.randn(8, 5)
        torch.testing.assert_close(whole(inputs), net(inputs))


@torch.no_grad()
def test_a_large_constant_hides_no_difference():
    """Units that always fire, of which one is the sum of two others, are no multiples, whatever they have in common."""
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    net[0].bias[:3], net[0].weight[2] = 1e6, net[0].weight[0] + net[0].weight[1]
    net[2].weight[:, :3] = torch.randn(3, 1) * torch.tensor([1.0, 1.0, -1.0])
    net[2].bias -= net[2].weight[:, :3].sum(1) * 1e6
    inputs = torch.randn(8, 5).double()
    whole = merged(net, torch.zeros(1, 5).double())
    assert sizes(whole) == sizes(net)
    torch.testing.assert_close(whole(inputs), net(inputs))


@torch.no_grad()
def test_a_unit_that_is_read_loudly_and_never_fires_hides_no_difference():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].weight[5], net[0].bias[5] = 1e6 * net[0].weight[5], -1e9
    net[2].weight[:, 5] *= 1e6
    net[2].weight[7], net[2].bias[7] = 2 * net[2].weight[0], 2 * net[2].bias[0]
    whole, inputs = merged(net, torch.zeros(1, 5)), torch.rand(8, 5)
    assert [whole[n].in_features for n in (0, 2, 4)] == [5, 6, 7]
    torch.testing.assert_close(whole(inputs), net(inputs))


@torch.no_grad()
def test_units_that_only_an_unread_unit_of_a_stream_reads_go_with_it():
    model = Stream(16)
    model.h.weight[:, 3] = model.o.weight[:, 3] = 0
    model.g.weight[torch.arange(16) != 3, 5] = 0
    whole, inputs = merged(model, EXAMPLE), torch.rand(8, *SHAPE)
    assert (whole.f.out_features, whole.h.out_features) == (15, 7)
    torch.testing.assert_close(whole(inputs), model(inputs))


@torch.no_grad()
def test_units_that_only_read_each_other_are_left_out():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(144, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x.flatten(1)).relu()
            return self.c((x + self.b(x)).relu())

    model = Loop()
    model.b.weight[:6, 6:] = model.c.weight[:, 6:] = 0
    whole, inputs = merged(model, EXAMPLE), torch.rand(8, *SHAPE)
    assert whole.b.weight.shape == (6, 6)
    torch.testing.assert_close(whole(inputs), model(inputs))


@torch.no_grad()
def test_a_slope_of_its_own_tells_units_apart():
    net = nn.Sequential(nn.Linear(5, 3), nn.PReLU(3), nn.Linear(3, 2))
    net[0].weight[2], net[0].bias[2] = net[0].weight[0], net[0].bias[0]
    assert merged(net, torch.zeros(1, 5))[2].in_features == 2
    net[1].weight[2] = 0.7
    assert merged(net, torch.zeros(1, 5))[2].in_features == 3


@torch.no_grad()
def test_units_that_nobody_reads_take_with_them_what_only_they_read():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[4].weight[:, 1:] = 0
    net[2].weight[0, 2:] = 0
    whole = merged(net, torch.zeros(1, 5))
    assert [whole[n].in_features for n in (0, 2, 4)] == [5, 2, 1]
    inputs = torch.randn(8, 5)
    torch.testing.assert_close(whole(inputs), net(inputs))


@torch.no_grad()
def test_units_that_nobody_reads_stay_where_the_code_names_their_number():
    class Named(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x.flatten(1)))
            if y.shape[1] != 8:
                raise RuntimeError("eight units are expected")
            return self.b(y)

    model = Named()
    model.b.weight[:, 3] = 0
    whole = merged(model, EXAMPLE)
    assert sizes(whole) == sizes(model)
    inputs = torch.rand(8, *SHAPE)
    torch.testing.assert_close(whole(inputs), model(inputs))


@torch.no_grad()
def test_a_unit_that_cannot_fire_is_left_out_where_the_inputs_are_known():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].bias[2] = -net[0].weight[2].clamp_min(0).sum() - 1e-3
    for inputs, units in ((None, 4), ((0.0, 1.0), 3), ((-2.0, 1.0), 4)):
        whole = merged(net, torch.zeros(1, 5), inputs=inputs)
        assert whole[0].out_features == units
    x = torch.rand(8, 5)
    torch.testing.assert_close(merged(net, torch.zeros(1, 5), inputs=(0.0, 1.0))(x), net(x))


@pytest.mark.parametrize("network", [chain, residual, dense])
def test_units_that_are_silent_by_their_biases_are_taken_out_where_the_inputs_are_known(network):
    model = randomised(network())
    scene = Scene(copy.deepcopy(model), None, Stamp.from_texts(["A"], outputs=4, shape=SHAPE, seed=0))
    SilentUnits().run(scene)
    inputs = torch.rand(16, *SHAPE)
    torch.testing.assert_close(scene.model(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    assert distance(shown(scene.model), shown(model)) > 0.1
    assert distance(shown(merged(scene.model, EXAMPLE)), shown(model)) > 0.1
    whole = merged(scene.model, EXAMPLE, inputs=(0.0, 1.0))
    assert sizes(whole) == sizes(model)
    assert distance(shown(whole), shown(model)) < 1e-5


def test_a_model_that_cannot_be_captured_is_an_error():
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(AttackError, match="cannot be captured"):
        canonical_form(Branch(), torch.zeros(1, 4))
