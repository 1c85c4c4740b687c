"""What is kept of a tensor is gone as soon as the tensor is another."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from hfp.kept import Kept


def test_a_value_is_of_the_tensor_as_it_is_now() -> None:
    live, kept = torch.ones(3), Kept[str]()
    assert kept.get(live) is None
    kept.put(live, "three", False)
    assert kept.get(live, False) == "three"
    assert kept.get(live, True) is None
    assert kept.get(live.clone(), False) is None
    live[0] = 0
    assert kept.get(live, False) is None
    kept.put(live, "two")
    assert kept.get(live) == "two"
    assert kept.get(live, False) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_copies_start_empty(copied: object) -> None:
    live, kept = torch.ones(3), Kept[int]()
    kept.put(live, 3)
    assert copied(kept).get(live) is None  # type: ignore[operator]
    assert kept.get(live) == 3


def test_tensors_that_do_not_count_their_changes_have_nothing_kept() -> None:
    kept = Kept[int]()
    with torch.inference_mode():
        live = torch.ones(3)
        kept.put(live, 3)
        assert kept.get(live) is None
