"""The other side of the wire: an SMSC, its phones and its citizens, for demos, tests and benchmarks.

It must not know the service it talks to: it imports `caplai.smpp` and nothing else of ours.
Invariant: a message a phone sent stays queued until the service took it, refused it for good, or it expired.
"""

from caplai.simulator.simulator import Simulator, SimulatorConfig, run

__all__ = ["Simulator", "SimulatorConfig", "run"]
