"""What lets operators see the service (floor 0.5): metrics, logs, each message's trail, probes, traces.

It imports nothing of ours, decides nothing, and nothing waits for it; rooms above the pure floor tell it what happened.
Invariant: no phone, no code and no text of a message or an exception leaves by it.
"""
