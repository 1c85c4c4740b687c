"""Whose code something happens in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hfp
from hfp.model import source


def told(line: str) -> bool:
    """Whether a place is a line of this file."""
    return line.startswith("test_source.py:")


def test_the_line_is_that_of_the_users_code_and_not_of_what_it_calls() -> None:
    lines: list[str] = []
    hook = nn.ReLU()
    hook.register_forward_hook(lambda *_: lines.append(source.source_line()))
    hook(torch.zeros(1))
    assert told(lines[0])
    code, _ = source.caller()
    assert (
        code is not None and code.co_name == test_the_line_is_that_of_the_users_code_and_not_of_what_it_calls.__name__
    )


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(3)


def test_an_error_comes_from_the_users_line_and_module_even_if_a_library_raised_it() -> None:
    outer = nn.Sequential(nn.Identity(), Failing())
    with pytest.raises(RuntimeError) as caught:
        outer(torch.zeros(4))
    assert told(source.line_of(caught.value))
    assert source.module_of(caught.value, {module: name for name, module in outer.named_modules()}) == "1"
    assert not source.is_bug(caught.value)


def test_an_error_of_our_own_that_no_input_should_cause_is_a_bug() -> None:
    with pytest.raises(AttributeError) as caught:
        hfp.verify(None, hfp.trace(nn.Linear(2, 2), torch.zeros(1, 2)))  # type: ignore[arg-type]
    assert source.is_bug(caught.value)
