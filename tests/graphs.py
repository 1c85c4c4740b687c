"""Networks on graphs: messages along edges, products with a sparse adjacency matrix. See `specimen.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from specimen import Net, parameter, registry
from torch import Tensor, nn

GRAPHS, specimen = registry()

# ---------------------------------------------------------------------------------------------- along edges


def edges() -> tuple[Tensor, Tensor]:
    return torch.tensor([0, 1, 2, 3, 4, 0, 2]), torch.tensor([1, 2, 0, 4, 3, 3, 3])


def messages(add: Any) -> Net:
    """A graph network: nodes (5, C) send along edges, what arrives is summed."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.a(x).relu()
        sent = net.b(torch.cat([x[net.source], x[net.target]], 1)).relu()
        return net.c(torch.cat([x, add(sent, net.target, len(x))], 1))

    net = Net(run, a=nn.Linear(3, 6), b=nn.Linear(12, 8), c=nn.Linear(14, 4))
    for name, nodes in zip(("source", "target"), edges(), strict=True):
        net.register_buffer(name, nodes)
    return net


@specimen(shapes=((5, 3),), least="a b b.weight/1 c.weight/1")
def messages_by_scatter_add() -> Net:
    def add(sent: Tensor, target: Tensor, nodes: int) -> Tensor:
        return sent.new_zeros(nodes, sent.shape[1]).scatter_add(0, target[:, None].expand_as(sent), sent)

    return messages(add)


@specimen(shapes=((5, 3),), least="a b b.weight/1 c.weight/1")
def messages_by_index_add() -> Net:
    return messages(lambda sent, target, nodes: torch.zeros(nodes, sent.shape[1]).to(sent).index_add_(0, target, sent))


@specimen(shapes=((5, 3),), least="a b b.weight/1 c.weight/1")
def messages_by_scatter_reduce() -> Net:
    def add(sent: Tensor, target: Tensor, nodes: int) -> Tensor:
        where = target[:, None].expand(-1, sent.shape[1])
        return torch.zeros(nodes, sent.shape[1]).to(sent).scatter_reduce_(0, where, sent, "amax", include_self=True)

    return messages(add)


# ---------------------------------------------------------------------------------------------- by a sparse matrix


def adjacency() -> Tensor:
    torch.sparse.check_sparse_tensor_invariants.disable()  # as it is by default, but PyTorch warns unless it is told
    return torch.sparse_coo_tensor(torch.stack(edges()), torch.linspace(0.5, 1.5, 7), (5, 5))


def convolved(product: Callable[[Tensor, Tensor], Tensor], matrix: Tensor, persistent: bool = True) -> Net:
    """Kipf and Welling, 2017."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = (product(net.matrix, x @ net.first) + net.shift).relu()
        return net.c(product(net.matrix, net.b(h)).relu())

    net = Net(run, first=parameter(3, 6), shift=parameter(6), b=nn.Linear(6, 8), c=nn.Linear(8, 4))
    net.register_buffer("matrix", matrix, persistent=persistent)
    return net


CONVOLVED = "first/1 shift/0 b.weight/1 b c.weight/1"


@specimen(shapes=((5, 3),), least=CONVOLVED)
def convolved_on_a_graph() -> Net:
    return convolved(torch.spmm, adjacency())


@specimen(shapes=((5, 3),), least=CONVOLVED)
def convolved_by_the_product_of_sparse_matrices() -> Net:
    return convolved(torch.sparse.mm, adjacency())


@specimen(shapes=((5, 3),), least=CONVOLVED)
def convolved_by_an_operator() -> Net:
    return convolved(lambda matrix, x: matrix @ x, adjacency())


@specimen(shapes=((5, 3),), least=CONVOLVED)
def convolved_on_paths_of_two_edges() -> Net:
    """As in a graph U-Net, which finds them by a product of sparse matrices: a result of a layout without strides."""

    def product(matrix: Tensor, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, that these are in beta
            sparse = matrix.to_sparse_csr()
            return torch.sparse.mm(sparse @ sparse, x)

    return convolved(product, adjacency().to_dense())


@specimen(shapes=((5, 3),), least=CONVOLVED)
def convolved_in_dense_matrices() -> Net:
    return convolved(torch.mm, adjacency().to_dense())


@specimen(shapes=((5, 3),), least=CONVOLVED)
def edges_dropped_by_value() -> Net:
    """The code looks at values, so it is run on the numbers."""

    def product(matrix: Tensor, x: Tensor) -> Tensor:
        matrix = matrix.coalesce()
        there = matrix.values() > 0.6
        left = matrix.indices()[:, there], matrix.values()[there]
        return torch.sparse.mm(torch.sparse_coo_tensor(*left, matrix.shape), x)

    return convolved(product, adjacency())


@specimen(shapes=((5, 3),), least="a b.weight/1")
def smoothed_by_a_matrix_that_is_no_buffer() -> Net:
    run = lambda net, x: net.b(torch.sparse.mm(net.matrix[0].to(x), net.a(x)))  # noqa: E731
    return Net(run, a=nn.Linear(3, 6), b=nn.Linear(6, 4), matrix=[adjacency()])
