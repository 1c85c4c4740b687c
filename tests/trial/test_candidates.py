"""In which order the numbers of modules are tried, of which there may be many as large as a length."""

from __future__ import annotations

from itertools import islice

import torch
from specimen import Net
from torch import nn

from hfp.labels import Ledger
from hfp.model.names import Names
from hfp.tracing.play import Subject
from hfp.tracing.run import Run
from hfp.trial.repair import Repairs


def test_numbers_of_the_module_itself_come_before_those_around_it() -> None:
    """Whichever length they are as large as: many count heads, and the layer that splits has the size of one."""
    split = Net(lambda net, x: x, size=12)
    numbers = dict.fromkeys(("heads", "kv_heads", "depth", "groups", "stages", "towers"), 2)
    model = Net(lambda net, x: net.split(net.q(x)), q=nn.Linear(3, 24), split=split, **numbers)
    seen = Run(Ledger(), {}, False, {}, {}, {}, False, [])
    repairs = Repairs(Subject(model, ((), {}), Names.of(model), ()), seen)
    heads, places = torch.arange(2), torch.arange(2, 14)
    first, second = islice(repairs._attributes("split", (heads, places)), 2)
    assert first.attribute == ("split", "size") and first.ids is places
    assert second.attribute is not None and second.attribute[0] == "" and second.ids is heads
