"""The trial cut: does the model's own code follow when channels go?

A trace cannot tell `x.view(b, -1)` from `x.view(b, 512)`, nor see the Python arithmetic of `x / x.shape[1] ** 0.5`. So
the network is cut, on the meta device, to a random part of its channels and to the fewest, and run again beside the
record of the dense run. At every operator the cut network must do the same to what is left: the same operator, the
same numbers, outputs of the shape that the labels predict, with the labels that are left. Where it does not, that is a
misfit; the run goes on with what should have come out, so that one run finds them all. What only values tell (how many
boxes are found, which of them) is taken from the dense run: shapes alone have none, and those of a network that is not
trained yet mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from hfp.channels import ChannelTable
from hfp.cutting.surgery import resize
from hfp.labels import ANY, Labels, Place
from hfp.model.source import is_bug, line_of, module_of, source_line
from hfp.rules.call import values_in
from hfp.rules.mixers import MIXERS
from hfp.tracing.attributes import get_size, set_size
from hfp.tracing.functions import Functions
from hfp.tracing.operands import Operand
from hfp.tracing.play import Subject, play
from hfp.tracing.position import Position, Site
from hfp.tracing.preserved import preserved
from hfp.tracing.run import Called, Run, needs_values
from hfp.tracing.watcher import SIZELESS, UNKNOWN, RuleError, Step, Watcher
from hfp.trial import scaling
from hfp.trial.blame import Blame
from hfp.trial.cut import Cut
from hfp.trial.keeps import keeps
from hfp.trial.misfit import Extent, Misfit
from hfp.words import first_line

_IDLE = {"clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy"}
"""Whether a reshape copies depends on strides, and so on lengths of 1: never compared."""
_COPIES = _IDLE | {"copy", "empty_like"}
_ALWAYS = (SIZELESS - _COPIES) | set(MIXERS)
"""Arithmetic, and what is counted."""
_FILLED = {"zeros", "ones", "empty", "rand", "randn"}
"""Functions whose arguments are lengths."""
_SPELT = {"__format__", "__repr__"}
"""Functions that need values, but do not fail where there are none."""
_SAME_OPERATOR = {"_unsafe_view": "view", "_reshape_alias": "view"}


def misfits(subject: Subject, table: ChannelTable, seen: Run, any_will_do: bool = False) -> list[Misfit]:
    """What the first trial that does not fit found out; nothing if the cut networks do what the dense one does.

    `any_will_do`: whether a part of it is enough.
    """
    modes = _modes(table, seen)
    for keep in keeps(table) if modes else ():
        if bool(keep.all()):
            continue
        cut = Cut(table, seen.ledger.axes, keep)
        found: list[Misfit] = []
        with _resized(subject, cut):
            for training in modes:
                found += _Trial(subject, seen, cut, training).run()
                if found and any_will_do:
                    return found
        if found:
            return list({misfit.key: misfit for misfit in reversed(found)}.values())[::-1]
    return []


def asked_from(subject: Subject, table: ChannelTable, seen: Run, attribute: str, paths: Iterable[str]) -> set[Any]:
    """The keys of what the whole network does otherwise when these modules have an attribute that is larger by one."""
    cut = Cut(table, seen.ledger.axes, torch.ones(table.channels, dtype=torch.bool))
    with _resized(subject, cut):
        for path in paths:
            module = subject.model.get_submodule(path)
            set_size(module, attribute, get_size(module, attribute) + 1)
        trials = [_Trial(subject, seen, cut, training) for training in _modes(table, seen)]
        found = [misfit for trial in trials for misfit in trial.run()]
        return {misfit.key for misfit in found if misfit.asked or misfit.numbers or misfit.extent is not None}


def still_other(subject: Subject, table: ChannelTable, seen: Run, attribute: str, paths: Iterable[str]) -> set[Any]:
    """The keys of where a cut network computes with other numbers, even if these modules keep an attribute as it is."""
    modules = [subject.model.get_submodule(path) for path in paths]
    dense = [get_size(module, attribute) for module in modules]
    cut = Cut(table, seen.ledger.axes, next(keeps(table)))
    with _resized(subject, cut):
        for module, value in zip(modules, dense, strict=True):
            set_size(module, attribute, value)
        trials = [_Trial(subject, seen, cut, training) for training in _modes(table, seen)]
        return {misfit.key for trial in trials for misfit in trial.run() if misfit.numbers}


def _modes(table: ChannelTable, seen: Run) -> list[bool]:
    """In training or not: the modes in which the model's code could do something else when it is cut."""
    repaired = not table.attributes.keys() <= seen.ledger.attributes.keys()  # the code has read what was changed
    able = seen.reads_widths or repaired
    modes = [training for training in seen.steps if able or seen.sized[training]]
    if len(modes) == 2 and seen.training_shows_all():
        return [True]  # and with a batch of two, in which more can be told apart
    return modes


@contextmanager
def _resized(subject: Subject, cut: Cut) -> Iterator[None]:
    """The modules say of their own sizes what those of the cut network will."""
    with preserved(subject.model):
        shadows = cut.shadows(subject.names.tensors)
        tensors = {alias: shadows[name] for alias, name in subject.names.aliases.items()}
        resize(subject.model, cut.table, cut.stays, tensors)
        yield


class _Trial:
    """One run of a cut network, in one mode, beside the record of the dense one."""

    def __init__(self, subject: Subject, seen: Run, cut: Cut, training: bool) -> None:
        self.subject, self.cut, self.training = subject, cut, training
        self.dense, self.calls = seen.steps[training], seen.calls[training]
        self.real, self.twos = seen.real, seen.twos
        self.shadows = cut.shadows(subject.names.tensors)
        self.scalings = {o.site: o for o in cut.table.operands if o.how == "power" and o.training == training}
        self.site: Site | None = None  # of the function that is running
        self.arguments: Any = ()  # its arguments
        self.at = 0  # the next step of the dense run
        self.lost = False  # something is wrong in the function that is running
        # It takes another way than in the dense run (a reshape copies or not, einsum skips lengths of 1): how, and
        # which lengths differ. What counts is its end.
        self.astray: tuple[str, Sequence[Extent]] | None = None
        self.found: list[Misfit] = []
        self.blame = Blame(cut, self.dense, seen.ledger)
        self.lengths = scaling.Lengths(self.dense, cut)

    def run(self) -> list[Misfit]:
        position = Position(self.subject.names.modules)
        self.watcher = Watcher(self.cut.ledger(), self.shadows, position, self._step, self.real)
        # Code that looks at values may look at their device as well, and go another way.
        device = next(iter(self.subject.names.tensors.values())).device if self.real else None
        functions = Functions(self.watcher, self.training, self._around, device)
        try:
            play(self.subject, self.shadows, functions, training=self.twos if self.training else None)
            if self.astray is not None or self._expected() is not None:
                self._misfit(self._expected(), self.astray[0] if self.astray else "ends early")
        except RuleError:
            raise
        except Exception as error:
            if is_bug(error):
                raise
            # No function of PyTorch failed: the code itself did, likely for a size that it has read.
            path = module_of(error, self.subject.names.modules)
            how, line = f"fails ({first_line(error)})", line_of(error)
            read = [ids for ids in self.watcher.labels(self.watcher.read) if ids is not None]
            touched = self.blame.read(self.at, read)  # the axes of which the size was read last
            self._misfit(self._expected(), how, path=path, line=line, touched=touched, ends=True)
        finally:
            del self.watcher  # which knows the trial in turn: no cycle is to outlive the run
        return self.found

    def _expected(self) -> Step | None:
        """The next step of the dense run that matters."""
        while self.at < len(self.dense):
            step = self.dense[self.at]
            if self._matters(step, map(self.cut.left, step.touched)):
                return step
            self.at += 1
        return None

    def _step(self, step: Step) -> None:
        if self.lost or self.astray or not self._matters(step, step.touched):
            return
        dense = self._expected()
        if dense is None or _operator(step) != _operator(dense):
            self.astray = f"runs {step.operator} instead of {dense.operator if dense else 'nothing'}", ()
        elif not self._computes_alike(step, dense):
            self.lost = True
            scalings, factor = self._scalings(step), scaling.ratio(step, dense)
            extent = None if scalings or factor is None else self.blame.reckoned(self.at, factor)
            self._misfit(dense, f"gives {step.operator} other numbers", extent, numbers=True, scalings=scalings)
        else:
            self.astray = self._differs(step, dense)
            self.at += 1

    def _computes_alike(self, step: Step, dense: Step) -> bool:
        """Whether it is given the same numbers, or a factor that the gated network will be given as well."""
        followed = self.scalings.get(self.site) if self.site else None
        if followed is None or scaling.ratio(step, dense) is None:  # a function may be several steps
            return _same_numbers(step.scalars, dense.scalars)
        return scaling.is_followed(step, dense, followed, self.cut)

    def _scalings(self, step: Step) -> tuple[Operand, ...]:
        if self.site is None:
            return ()
        lengths, arguments = self.lengths.until(self.at + 1), values_in(self.arguments)
        return scaling.candidates(step, self.dense[self.at], lengths, self.site, arguments, self.training, self.cut)

    def _matters(self, step: Step, labels: Iterable[Tensor]) -> bool:
        """Whether a step is compared: it touches channels, or does arithmetic. Copies of what is pinned may differ."""
        name = step.operator.rstrip("_")
        return name not in _IDLE and (step.own or name in _ALWAYS or any(map(self.cut.alive, labels)))

    def _differs(self, step: Step, dense: Step) -> tuple[str, Sequence[Extent]] | None:
        if len(step.shapes) != len(dense.shapes):
            return f"gets {len(step.shapes)} parts from {step.operator} instead of {len(dense.shapes)}", ()
        for shape, dense_shape, labels, dense_labels in zip(
            step.shapes, dense.shapes, step.labels, dense.labels, strict=True
        ):
            predicted = self.cut.shape(dense_shape, dense_labels)
            # What is multiplied is counted, so there every length has to be the predicted one.
            counted = dense.operator in MIXERS or dense.own
            if not _fits(shape, predicted, () if counted else dense_labels):
                how = f"gets the shape {tuple(shape)} from {step.operator}, where {tuple(predicted)} is left"
                return how, self.blame.extents(self.at, dense_shape, dense_labels, predicted, shape, counted)
            for axis, ids in enumerate(dense_labels):
                if ids is not None and not self._same(ids, labels[axis] if labels else None):
                    return f"gets other channels from {step.operator}", ()
        return None

    def _same(self, ids: Tensor, found: Tensor | None) -> bool:
        """Whether labels are those that are left; an axis on which none are visible any more may go without."""
        left = self.cut.left(ids)
        if found is None or not self.cut.alive(left):
            return len(left) == 1 or not self.cut.alive(left)
        return found is left or torch.equal(left, found) or torch.equal(left, torch.where(found == ANY, left, found))

    def _around(self, site: Site, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
        """The function's output, or what should have come out."""
        called = self.calls.get(site)
        if self.real and called is not None and site.function in _SPELT:
            return self._replaced(called)
        before, start = len(self.found), self.at
        outer, self.site, self.arguments = (self.site, self.arguments), site, (args, kwargs)
        try:
            out = call()
        except RuleError:
            raise
        except Exception as error:
            if called is None or self.lost:
                raise
            if self.real and needs_values(error):  # which nobody knows before the cut network is trained
                self.at, self.astray = called.end, None
                with self.watcher.paused():
                    return self._replaced(called, values_in(args) if site.function in _FILLED else ())
            self.lost = True
            with self.watcher.paused():
                self._misfit(self._expected(), f"fails ({first_line(error)})")
        finally:
            self.site, self.arguments = outer
        if self.astray is None and called is not None and not self.lost:
            self.astray = self._misshapen(out, called, start)
        if self.astray is not None and not self.lost:
            with self.watcher.paused():
                self.lost = called is None or not self._as_left(out, called, start)
                extents: Sequence[Extent | None] = self.astray[1] or [None]
                for extent in extents if self.lost else ():
                    self._misfit(self._expected(), self.astray[0], extent)
            self.at = self.at if called is None else called.end
        self.astray = None
        if not self.lost or called is None:
            return out
        self.lost = False
        with self.watcher.paused():
            return self._instead(site, called, args, kwargs, before)

    def _as_left(self, out: Any, called: Called, start: int) -> bool:
        """Whether the function gave what should come out."""
        counted = any(step.operator in MIXERS or step.own for step in self.dense[start : called.end])
        tensors = _tensors(out)
        return len(tensors) == len(called.outs) and all(
            _fits(tensor.shape, self.cut.shape(shape, labels), () if counted else labels)
            and all(
                ids is None or self._same(ids, own)
                for ids, own in zip(labels, self.watcher.labels(tensor) or (None,) * len(labels), strict=True)
            )
            for tensor, (shape, labels, *_) in zip(tensors, called.outs, strict=True)
        )

    def _misshapen(self, out: Any, called: Called, start: int) -> tuple[str, Sequence[Extent]] | None:
        """How the shapes given differ from what is left. Steps miss some: a group's only channel left has no labels."""
        touched = [ids for step in self.dense[start : called.end] for ids in step.touched]
        for tensor, (dense, labels, *_) in zip(_tensors(out) if touched else (), called.outs, strict=False):
            predicted = self.cut.shape(dense, labels)
            if not _fits(tensor.shape, predicted, labels):
                if not any(self.cut.length(ids) < len(ids) for ids in touched):
                    return None  # what has no channels may have any shape
                how = f"gives the shape {tuple(tensor.shape)}, where {tuple(predicted)} is left"
                return how, self.blame.extents(self.at, dense, labels, predicted, tensor.shape)
        return None

    def _instead(self, site: Site, called: Called, args: Any, kwargs: Any, before: int) -> Any:
        """What should have come out."""
        self.found[before:] = [
            told
            for misfit in self.found[before:]
            for told in self.blame.by_length(misfit, self.at, site, called, args, kwargs)
        ]
        self.at = called.end
        return self._replaced(called)

    def _replaced(self, called: Called, lengths: Sequence[Any] = ()) -> Any:
        """New tensors of the shapes that are left, in the memory order of the dense ones.

        `lengths`: those that were asked for. One that would be read off a tensor (the batch of a packed sequence) is as
        it was.
        """
        leaves = []
        for shape, labels, dtype, order in called.outs:
            sizes = list(self.cut.shape(shape, labels))
            if len(lengths) == len(sizes):
                sizes = [n if isinstance(n, int) else size for n, size in zip(lengths, sizes, strict=True)]
            device = next(iter(self.shadows.values())).device
            tensor = torch.zeros([sizes[axis] for axis in order], dtype=dtype, device=device)
            tensor = tensor.permute([order.index(axis) for axis in range(len(order))])
            self.watcher.label(tensor, tuple(None if ids is None else self.cut.visible(ids) for ids in labels))
            leaves.append(tensor)
        tensors = iter(leaves)
        return tree_unflatten([next(tensors, None) if leaf is None else leaf for leaf in called.leaves], called.spec)

    def _misfit(
        self,
        dense: Step | None,
        how: str,
        extent: Extent | None = None,
        path: str = "",
        line: str = "",
        touched: tuple[Tensor, ...] = (),
        ends: bool = False,
        numbers: bool = False,
        scalings: tuple[Operand, ...] = (),
    ) -> None:
        place = (dense or self.dense[-1]).place
        path = path or self.watcher.position.path or place.module
        place = Place(place.operator, path, line or source_line() or place.line)
        axis = None if extent is None else extent.axis
        self.found.append(
            Misfit(
                (place, axis),
                how,
                place,
                touched or self.blame.meeting(self.at),
                extent,
                numbers,
                at=self.at,
                ends=ends,
                scalings=scalings,
            )
        )


def _same_numbers(found: Sequence[Any], dense: Sequence[Any]) -> bool:
    """Whether they are, as far as they are known: a tensor may hold a number only where one element of it is left."""
    return all(
        UNKNOWN in (a, b) or a == b or (a != a and b != b)  # NaN is NaN
        for a, b in zip_longest(found, dense)
    )


def _operator(step: Step) -> str:
    return _SAME_OPERATOR.get(step.operator, step.operator)


def _tensors(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _fits(shape: Sequence[int], predicted: Sequence[int], labels: Labels) -> bool:
    """Whether a shape is the predicted one; axes on which all is alike may have any length."""
    axes = labels or (None,) * len(predicted)
    return len(shape) == len(predicted) and all(
        got == want or (ids is not None and bool((ids == ANY).all()))
        for got, want, ids in zip(shape, predicted, axes, strict=True)
    )
