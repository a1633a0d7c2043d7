"""Programs that are compiled in the background."""

import threading

import jax
import jax.numpy as jnp
import pytest

from gorl._backend._compiler import BackgroundCompiler

WAIT = 60.0  # seconds; what is waited for comes at once, or never


class Held:
    """A program of which the test decides when it is traced and when it is compiled."""

    def __init__(self, error=None):
        self.traced, self.compiled = threading.Event(), threading.Event()
        self.may_trace, self.may_compile = threading.Event(), threading.Event()
        self.error = error

    def lower(self):
        assert self.may_trace.wait(WAIT)
        self.traced.set()
        return self

    def compile(self):
        assert self.may_compile.wait(WAIT)
        if self.error:
            raise self.error
        self.compiled.set()

    def release(self):
        self.may_trace.set()
        self.may_compile.set()


@pytest.fixture
def held():
    """Makes held programs, and lets go of them whatever happens."""
    made = []

    def make(error=None):
        made.append(Held(error))
        return made[-1]

    yield make
    for program in made:
        program.release()


def test_a_call_after_waiting_compiles_nothing(compilations):
    double = jax.jit(lambda x: 2 * x + 1)
    x = jnp.arange(3.0)
    with BackgroundCompiler({"double": lambda: double.lower(x)}) as programs:
        programs.wait("double")
    assert len(compilations) >= 1
    compilations.clear()
    assert double(x).tolist() == [1.0, 3.0, 5.0]
    assert not compilations


def test_the_first_is_ready_before_the_others(held):
    first, second = held(), held()
    with BackgroundCompiler({"first": first.lower, "second": second.lower}) as programs:
        first.release()
        programs.wait("first")
        assert first.compiled.is_set()
        assert not second.traced.is_set()


def test_the_second_is_traced_while_the_first_is_compiled(held):
    first, second = held(), held()
    with BackgroundCompiler({"first": first.lower, "second": second.lower}):
        second.may_trace.set()
        assert not second.traced.wait(0.1), "one is traced at a time, in order"
        first.may_trace.set()
        assert second.traced.wait(WAIT)
        assert not first.compiled.is_set()


def test_what_goes_wrong_with_one_is_raised_while_others_are_waited_for(held):
    first, broken = held(), held(ValueError("no such program"))
    with BackgroundCompiler({"first": first.lower, "broken": broken.lower}) as programs:
        first.release()
        programs.wait("first")
        broken.release()
        with pytest.raises(ValueError, match="no such program"):
            programs.wait_for_all()
        with pytest.raises(ValueError, match="no such program"):
            programs.wait("first")


def test_those_that_have_not_begun_are_left_when_nobody_needs_them_any_more(held):
    programs = [held() for _ in range(3)]
    with BackgroundCompiler({number: program.lower for number, program in enumerate(programs)}):
        pass
    for program in programs[:2]:
        program.release()
        assert program.compiled.wait(WAIT)
    programs[2].release()
    assert not programs[2].traced.wait(0.2)
