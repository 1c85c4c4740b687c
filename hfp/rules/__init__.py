"""What each ATen operator does to labels: one table, one row per operator.

A rule is a function `rule(ledger, call)`: it reads the labels of the call's arguments, writes ties, pins, readers and
costs into the ledger and returns the labels of the call's output (and of further outputs of the same shape, such as the
indices of a pooling; batch statistics and the like carry no labels). An operator without a row pins what it touches,
unless the user has given it a rule (`hfp.rules.own`), or it is seen to treat channels one by one (`hfp.rules.untold`).

A rule may suppose that sizes in the model's code follow the channels: `hfp.trial` cuts the network and looks.
"""

from hfp.rules.call import Call, Rule
from hfp.rules.mixers import MIXERS
from hfp.rules.movers import MOVERS
from hfp.rules.norms import NORMS
from hfp.rules.pairs import PAIRS
from hfp.rules.pointwise import POINTWISE
from hfp.rules.reducers import REDUCERS
from hfp.rules.untold import custom

RULES: dict[str, Rule] = {**MIXERS, **MOVERS, **NORMS, **PAIRS, **POINTWISE, **REDUCERS}

__all__ = ["RULES", "Call", "Rule", "custom"]
