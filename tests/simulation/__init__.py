"""The SMS door in a simulated world: the real code of `caplai/channels/`, an event loop whose time is virtual, a
network, a store and a carrier that do what a seed says. Nothing here touches a socket, a database or the clock.

A run is a function of its seed alone: `python -m bench simulate --seeds 1 --from SEED --trace` shows it again.
"""
