"""What errors and tables say of errors and of many names."""

from __future__ import annotations

import pytest
import torch

from hfp.words import first_few, first_line


def test_the_first_line_of_an_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(4).view(3)
    assert first_line(caught.value) == "RuntimeError: shape '[3]' is invalid for input of size 4"
    assert first_line(ValueError("\nFirst.\nSecond.")) == "ValueError: First"
    assert first_line(KeyError()) == "KeyError: no message"
    assert len(first_line(ValueError("x" * 10**6))) < 2000


@pytest.mark.parametrize("number, said", [(0, ""), (2, "0; 1"), (3, "0; 1; 2"), (4, "0; 1; 2 and 1 more")])
def test_the_first_few(number: int, said: str) -> None:
    assert first_few([str(n) for n in range(number)], 3, "; ") == said
