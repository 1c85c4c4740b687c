"""Every index of every tensor has an id; the vectors of a layer, and the states of a recurrent one, share theirs."""

from __future__ import annotations

from torch import nn

from hfp.labels import Ledger
from hfp.model.names import Names
from hfp.tracing.numbering import numbered


def ledger_of(model: nn.Module) -> Ledger:
    names = Names.of(model)
    return numbered(names, dict(names.tensors))


def test_every_index_has_an_id() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 3), nn.Embedding(5, 7))
    axes = ledger_of(model).axes
    for name, tensor in Names.of(model).tensors.items():
        assert [len(ids) for ids in axes[name]] == list(tensor.shape)


def test_a_vector_of_a_layer_has_the_ids_of_its_outputs() -> None:
    axes = ledger_of(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 6, 3))).axes
    assert axes["0.bias"][0].equal(axes["0.weight"][0])
    assert axes["1.running_var"][0].equal(axes["1.weight"][0])
    apart = [axes[name][0] for name in ("0.weight", "1.weight", "2.weight", "2.bias")]
    assert len({int(number) for ids in apart for number in ids}) == 24  # outputs of the last are its second axis


def test_the_layers_of_a_recurrent_module_are_of_one_size() -> None:
    ledger = ledger_of(nn.Sequential(nn.GRU(3, 5, num_layers=2)))
    state = ledger.attributes["0", "hidden_size"]
    roots = ledger.roots()
    for name in ("0.weight_hh_l0", "0.weight_hh_l1"):
        rows, columns = (roots[ids] for ids in ledger.axes[name])
        assert columns.equal(roots[state]) and rows.reshape(3, 5).equal(columns.expand(3, 5))
