"""Signals wait for the end of a step, once."""

import os
import signal

import pytest

from hfp.experiment import stopping


@pytest.mark.parametrize(
    ("sent", "raised"), [(signal.SIGTERM, stopping.Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_it_is_noted_then_saved_then_raised(sent: int, raised: type[BaseException]) -> None:
    seen = []
    before = signal.getsignal(sent)
    with pytest.raises(raised), stopping.saved_if_stopped(lambda: seen.append("saved")) as stopped:
        assert not stopped()
        os.kill(os.getpid(), sent)
        assert stopped()
        seen.append("the rest of the step")
    assert seen == ["the rest of the step", "saved"]
    assert signal.getsignal(sent) is before


def test_without_a_signal_nothing_is_saved() -> None:
    with stopping.saved_if_stopped(pytest.fail):
        pass


def test_the_second_one_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), stopping.saved_if_stopped(pytest.fail):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it waited")


def test_an_error_after_the_signal_is_its_consequence() -> None:
    with pytest.raises(stopping.Terminated) as raised, stopping.saved_if_stopped(pytest.fail):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("a worker was terminated")
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_an_error_without_one_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="own"), stopping.saved_if_stopped(pytest.fail):
        raise RuntimeError("own")
