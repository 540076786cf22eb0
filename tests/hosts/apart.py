"""Run a test in a process and namespaces of its own: `@apart()` above it is all that it takes."""

import functools
import importlib
import os
import subprocess
import sys

import pytest

from bench._apart import namespaces, why_not

PATIENCE = 300


def apart(*, network=False, lacks=None):
    """The test becomes a process that is the first of a PID namespace; `network`: it may make networks, too.

    `lacks`: what it needs and this copy of the repository has not, if anything; then it is skipped, in CI too.
    """

    def decorate(story):
        @functools.wraps(story)
        def test():
            command = [sys.executable, "-m", "tests.hosts.apart", story.__module__, story.__name__]
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")
            }
            done = subprocess.run(
                [*namespaces(network=network), *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
            )
            print(done.stdout)
            assert done.returncode == 0, done.stdout[-4000:]

        test.story = story
        reason = why_not(network=network)
        if lacks:
            return pytest.mark.skip(reason=lacks)(pytest.mark.slow(test))
        for mark in (
            pytest.mark.slow,
            pytest.mark.peer,  # CI can make namespaces, and must not skip this
            pytest.mark.timeout(PATIENCE + 20),
            pytest.mark.skipif(reason is not None, reason=reason or ""),
        ):
            test = mark(test)
        return test

    return decorate


if __name__ == "__main__":
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2]).story()
