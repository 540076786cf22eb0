"""The doors (floor 3): how a citizen's request comes in and the answer goes out.

A door must not know another door, nor decide anything: it proves whose request it is and calls service/.
Invariant: what a carrier delivered is acknowledged only after the store has committed it.
"""
