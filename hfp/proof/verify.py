"""Proof before training: on random numbers, a network with gates computes what the network cut to them does.

The trial cut (`hfp.trial`) compares shapes and labels, by the same rules that made the table, and mostly on shapes
alone. This compares numbers: a rule that is wrong, or code that does something else on real numbers, shows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfp import gates
from hfp.channels import ChannelTable
from hfp.cutting import surgery
from hfp.explain import phrase
from hfp.model import outputs
from hfp.model.ambient import plainly
from hfp.model.copies import copied, shared_functions
from hfp.model.inputs import Arguments, arguments, home, placed, rebuild, tells_values
from hfp.proof import gradients
from hfp.rules.own import OWN
from hfp.tracing.preserved import preserved, set_mode
from hfp.trial.keeps import random_part
from hfp.words import first_few, first_line

DOUBLE = 1e-6  # the tolerance where float64 decides: some networks compute a part in float32, whatever their weights
LEARNS = 1e-2  # the tolerance of gradients, relative to the largest of each parameter: what is wrong is so by far

Wrong = Callable[[Tensor], bool]
"""Whether all is not well at a keep vector (channels,)."""


class Disagreement(RuntimeError):
    """Gating channels and removing them do not come to the same. `groups`: numbers of the groups that are to blame."""

    def __init__(self, message: str, groups: tuple[int, ...]) -> None:
        super().__init__(message)
        self.groups = groups


@plainly
def verify(model: nn.Module, table: ChannelTable, example_inputs: Any = None, *, cuts: int = 3) -> float:
    """How far gated and compacted outputs are apart at most, relative to the largest, for `cuts` random keep vectors.

    >>> from hfp.trace import trace
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> verify(model, trace(model, torch.zeros(1, 3, 8, 8))) < 1e-6
    True

    `example_inputs` are needed only for models whose code looks at values; for others noise of the traced shapes does.
    Disagreement, with the channel groups that are to blame, where the outputs are not the same but for rounding;
    ValueError, where that is because the network holds numbers that are not finite.
    """
    if isinstance(getattr(model, "table", None), ChannelTable):
        raise ValueError("the model is wrapped; the table is of the plain one: hfp.verify(net.model, net.table)")
    if not isinstance(table, ChannelTable):
        raise ValueError(f"expected the table, hfp.trace(model, example_inputs), not a {type(table).__name__}")
    if isinstance(cuts, bool) or not isinstance(cuts, int) or cuts < 1:
        raise ValueError(f"cuts={cuts!r}: expected a whole number of at least 1")
    if found := surgery.misfit(model, table):
        raise ValueError(f"this is the table of another network: {found} when it was traced; hfp.trace(model, ...)")
    given = rebuild(table.inputs) if example_inputs is None else arguments(model, example_inputs)
    proof = Proof(model, table, given)
    error = 0.0
    for keep in random_keeps(table, cuts):
        error = max(error, proof.check(keep))
        proof.check_gradients(keep)
    return error


def random_keeps(table: ChannelTable, count: int) -> Iterator[Tensor]:
    """`count` keep vectors, the same at every call: half of every group, then of each a random share of its own."""
    if not table.groups:
        return
    yield random_part(table)
    for number in range(1, count):
        generator = torch.Generator().manual_seed(number)
        keep = torch.zeros(table.channels, dtype=torch.bool)
        for group in table.groups:
            some = int(torch.randint(group.least, group.width + 1, (), generator=generator))
            keep[group.channels[torch.randperm(group.width, generator=generator)[:some]]] = True
        yield keep


class Proof:
    """Compares a model with gates to the model cut, both in evaluation mode, on noise in place of `arguments`."""

    def __init__(
        self,
        model: nn.Module,
        table: ChannelTable,
        arguments: Arguments,
        *,
        readers: gates.Readers | None = None,
        ignored: Sequence[str] = (),
        tolerance: float | None = None,
        chance: bool = True,
    ) -> None:
        """`ignored`: what the table was made with, and the advice goes on from; `tolerance`: that of the precision;
        `chance`: whether the model may draw numbers, which are others for another width."""
        self.device, self.dtype = home(model)
        self.model, self.table, self.arguments = model, table, placed(arguments, self.device)
        self.original = model  # of which `model` may be a copy in another precision
        self.readers = gates.Readers(model, table) if readers is None else readers
        self.ignored, self.chance, self.as_given = ignored, chance, tells_values(table.inputs)
        self.written: dict[str, None] = {}
        """Names of the buffers and parameters that a forward has written to, in evaluation mode."""
        self.tolerance = outputs.TOLERANCE.get(self.dtype, 1e-4) if tolerance is None else tolerance

    def check_gradients(self, keep: Tensor) -> None:
        """That the gated network learns what the cut one would, at `keep` (channels,) which has passed `check`."""
        error, words = self.compared_gradients(keep)
        if error <= LEARNS:
            return
        with _in_full_precision(self.device):
            judge = self
            if error != math.inf:  # what is infinite is no matter of rounding
                judge = self._judge()
                whole, _ = judge.compared_gradients(torch.ones_like(keep))
                error, words = judge.compared_gradients(keep) if whole <= LEARNS else (0.0, "")  # of what is drawn, say
            if error > LEARNS and (error == math.inf or judge.dtype not in (torch.float16, torch.bfloat16)):
                raise judge._learns_otherwise(keep, words)  # of half precision nothing can be said

    def _learns_otherwise(self, keep: Tensor, words: str) -> Disagreement:
        found = (
            f"outputs of {type(self.model).__name__} are the same with gates and compact, but {words}. So does code of "
            "which a trace shows the forward alone: a torch.autograd.Function that works across channels or calls "
            "layers in its backward pass, a branch on whether gradients are asked for, a derivative that is infinite "
            "where a channel is hidden."
        )
        if shared := self._shared():
            return Disagreement(f"{found} {shared}", ())

        def wrong(only: Tensor) -> bool:
            return not self.compared_gradients(only)[0] <= LEARNS

        if wrong(torch.ones_like(keep)):
            return Disagreement(f"{found} So it is with no channel removed", ())
        return self._blaming(keep, f"{found} ", "", wrong)

    def check(self, keep: Tensor, small: nn.Module | None = None) -> float:
        """The difference at `keep` (channels,), where it is but rounding; `small`: the model cut to it, if there is.

        Rounding, and choices that rest on it (the best boxes), may tell float32 outputs apart, and so may numbers
        that are drawn: then float64 decides, and all that is drawn is one number.
        """
        error, _ = self.compared(keep, small)
        if error <= self.tolerance:
            return error
        with _in_full_precision(self.device):
            judge = self._judge()
            error, words = judge.compared(keep)
            if error <= judge.tolerance:
                return error
            self._check_finite(error)
            raise judge._disagreement(keep, words)

    def _check_finite(self, error: float) -> None:
        """Not a number times a gate that is closed is still none, so nothing can be said of such a network."""
        name = type(self.model).__name__
        for tensor, value in self.model.state_dict().items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.to_dense().isfinite().all()):
                raise ValueError(
                    f"{name} holds numbers that are not finite, in {tensor}: it has diverged. "
                    "Take an earlier state of it."
                )
        if math.isnan(error):
            raise ValueError(
                f"no output of {name} is finite, on noise or on the example inputs, so that gates cannot be compared "
                "with a cut; give example inputs such as those that it is trained on"
            )

    def compared(self, keep: Tensor, small: nn.Module | None = None) -> tuple[float, str]:
        """The difference, infinite where the cut network does not run, and in words what the cut network does."""
        found = math.nan, "has no finite output"
        with self._both(keep, small) as (gated, small):
            for as_given in dict.fromkeys((self.as_given, True)):
                try:
                    error = outputs.difference(suited(gated), small, self.arguments, as_given, self.chance)
                except (MemoryError, torch.OutOfMemoryError):
                    raise
                except Unsuited as unsuited:  # noise is no index, say; if these do not do either, that is told
                    found = math.inf, f"does not run ({first_line(unsuited.failure)})"
                except Exception as failure:  # whatever a forward may raise where a length in it is wrong
                    return math.inf, f"does not run ({first_line(failure)})"
                else:
                    if not math.isnan(error):  # a logarithm, say, of what cannot be negative
                        self.as_given = as_given
                        return error, f"differs from the gated one by {error:.1e} of its largest output"
        return found

    def compared_gradients(self, keep: Tensor) -> tuple[float, str]:
        """The difference of what they would learn, see `hfp.proof.gradients`."""
        given = self.arguments if self.as_given else outputs.noisy(self.arguments)
        lives = surgery.lives_of(self.table, self.table.extended(keep))
        with self._both(keep) as (gated, small):
            return gradients.apart(gated, self.model, small, lives, given, self.chance)

    @contextmanager
    def _both(self, keep: Tensor, small: nn.Module | None = None) -> Iterator[tuple[Callable[..., Any], nn.Module]]:
        """The gated and the cut network, in evaluation mode; what they write is put back afterwards."""
        open_gates = keep.to(self.device, torch.promote_types(self.dtype, torch.float32))

        def gated(*args: Any, **kwargs: Any) -> Any:
            return gates.gated_forward(self.model, self.readers, open_gates, args, kwargs)

        small = surgery.compact(self.model, self.table, keep) if small is None else small
        networks = self.model, small
        tensors = [
            (name, tensor, tensor.detach().clone())
            for network in networks
            for name, tensor in (*network.named_buffers(), *network.named_parameters())
            if tensor.layout == torch.strided and (name in self.table.written or not isinstance(tensor, nn.Parameter))
        ]
        try:
            with preserved(self.model), preserved(small):
                for network in networks:
                    set_mode(network, False)
                yield gated, small
        finally:
            for name, tensor, before in tensors:
                if not torch.equal(tensor, before):
                    tensor.data.copy_(before)
                    self.written[name] = None

    def _judge(self) -> Proof:
        """The same comparison without rounding and chance: in float64, with one number for every draw, or both.

        The first of them in which a copy with nothing cut agrees; if none does, this one.
        """
        whole = torch.ones(self.table.channels, dtype=torch.bool)
        for double, chance in ((True, False), (True, True), (False, False)):
            model, arguments, tolerance = self.model, self.arguments, self.tolerance
            if double:
                twin = copied(model, {})  # not `compact` of all: that has other attention in the place of PyTorch's
                device = _to_double(twin, self.device)
                if device is None:
                    continue
                model = twin
                arguments, tolerance = placed(arguments, device, {self.dtype: torch.float64}), DOUBLE
            judge = Proof(model, self.table, arguments, ignored=self.ignored, tolerance=tolerance, chance=chance)
            judge.original = self.model
            if judge.compared(whole)[0] <= tolerance:
                return judge
        return self

    def _disagreement(self, keep: Tensor, words: str) -> Disagreement:
        """The error to raise: which groups are to blame, and the call that leaves them whole."""
        name = type(self.model).__name__
        if shared := self._shared():
            return Disagreement(f"the compact network of {name} {words}. {shared}", ())

        def wrong(only: Tensor) -> bool:
            return self.compared(only)[0] > self.tolerance

        if wrong(whole := torch.ones_like(keep)):
            _, words = self.compared(whole)
            return Disagreement(
                f"nothing can be said of {name}: with no channel removed its copy {words}. What is needed are "
                "example inputs in whose place random numbers may stand, and an output that is the same twice",
                (),
            )
        if written := first_few(list(self.written)):
            causes = (
                f". Its forward writes to {written}, in evaluation mode, too: if it sets itself up by the first batch "
                "that it sees, run the model once on your data before hfp.wrap"
            )
        else:
            own = ", ".join(name if isinstance(name, str) else name.__name__ for name in OWN)
            yours = f"a rule of yours that is wrong ({own}), " if own else ""
            causes = (
                f". This is {yours}a bug of hfp, or code in the model that no trace shows (arithmetic on a width, a "
                "branch on it); please report it with the model's code"
            )
        return self._blaming(keep, f"the compact network of {name} {words}. ", causes, wrong)

    def _blaming(self, keep: Tensor, before: str, after: str, wrong: Wrong) -> Disagreement:
        """With the groups to blame, those that are `wrong` by themselves, and the call that leaves them whole."""
        cut = [number for number, group in enumerate(self.table.groups) if not bool(keep[group.channels].all())]
        culprits = self._culprits(keep, cut, wrong)
        blamed = ["together, ".join(phrase(self.table, number) for number in together) for together in culprits]
        whole = dict.fromkeys([*self.ignored, *(self._maker(together[0]) for together in culprits)])
        return Disagreement(
            f"{before}To blame: {first_few(blamed, between='; ')}. "
            f"To leave that whole: hfp.wrap(..., ignore={list(whole)}){after}",
            tuple(sorted({number for together in culprits for number in together})),
        )

    def _only(self, keep: Tensor, groups: Sequence[int]) -> Tensor:
        """These groups cut as in `keep`, and all others whole."""
        only = torch.ones_like(keep)
        for number in groups:
            channels = self.table.groups[number].channels
            only[channels] = keep[channels]
        return only

    def _culprits(self, keep: Tensor, groups: Sequence[int], wrong: Wrong) -> list[list[int]]:
        """Of `groups` that go wrong, the sets that do so by themselves: halves are tried, and their halves."""
        if len(groups) == 1:
            return [list(groups)]
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        failing = [half for half in halves if wrong(self._only(keep, half))]
        found = [culprit for half in failing for culprit in self._culprits(keep, half, wrong)]
        return found or [self._needed(keep, list(groups), wrong)]

    def _needed(self, keep: Tensor, groups: list[int], wrong: Wrong) -> list[int]:
        """Of groups that go wrong only together, those without which nothing does."""
        for number in list(groups):
            rest = [other for other in groups if other != number]
            if wrong(self._only(keep, rest)):
                groups = rest
        return groups

    def _shared(self) -> str:
        """What is the matter with functions that name the model, if there are any."""
        found = shared_functions(self.original)
        if not found:
            return ""
        return (
            f"{first_few(found)}: functions (lambdas, hooks) that name a part of the model, a global variable, "
            "so that a copy of the model, too, calls that of the original. Make them methods, or let them take it from "
            "the function around them; or register them after compact()."
        )

    def _maker(self, number: int) -> str:
        """A module that makes the channels of a group, and as little else as may be: to ignore it leaves them whole."""
        made = [tensor for tensor, dim in self.table.groups[number].members if (tensor, dim) not in self.table.readers]
        owners = [owner for tensor in made if (owner := tensor.rpartition(".")[0])]
        return min(owners, key=lambda owner: len(list(self.model.get_submodule(owner).modules())), default="*")


class Unsuited(Exception):
    """The network itself does not run on these inputs."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


def suited(network: Callable[..., Any]) -> Callable[..., Any]:
    """The same; what it raises is `Unsuited`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return network(*args, **kwargs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as failure:
            raise Unsuited(failure) from failure

    return run


@contextmanager
def _in_full_precision(device: torch.device) -> Iterator[None]:
    """Without the autocast that the program may be in."""
    with ExitStack() as stack:
        for kind in {"cpu", device.type}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _to_double(model: nn.Module, device: torch.device) -> torch.device | None:
    """Convert to float64 in place, on the CPU if the device has none. The device that inputs have to be on."""
    for move, place in ((nn.Module.double, device), (lambda model: model.cpu().double(), torch.device("cpu"))):
        try:
            move(model)
            return place
        except (TypeError, RuntimeError):
            pass
    return None
