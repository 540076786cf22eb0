"""The parts of the service as real processes, to be killed, stopped, paused and started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Part:
    """`caplai ARGUMENTS`, with its log in `folder`. `before` stands in front of the command (`ip netns exec …`);
    `tree` is the source tree it runs from, ours if it is None.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        before: Sequence[str] = (),
        tree: Path | None = None,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = [*before, sys.executable, "-m", "caplai", *arguments]
        self._tree = tree or Path(__file__).parent.parent
        self._environment = {**environment, "PYTHONPATH": str(self._tree)}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=self._tree,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def start(self) -> None:
        """Start it again, after it has ended."""
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 30.0) -> int | None:
        """SIGTERM; its exit status, None if it had to be killed after that time."""
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def pause(self) -> subprocess.Popen[bytes]:
        """SIGSTOP, as a machine that hangs. Give what this returns to `resume`."""
        self.process.send_signal(signal.SIGSTOP)
        return self.process

    @staticmethod
    def resume(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGCONT)

    def says(self) -> str:
        return self.log.read_text("utf-8", "replace")


def plain_environment() -> dict[str, str]:
    """Ours, without a setting of caplai's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
