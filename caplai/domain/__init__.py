"""The rules, pure: text → command, phone numbers, who may have a password, the password, the reply.

Must not know Django, asyncio, the clock, settings or the network; what it needs is handed in.
Invariant: the same input gives the same answer for ever, and refusals are returned, never raised.
"""
