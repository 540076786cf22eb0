"""The store (floor 1): the only tables, one line of migrations, and the two queues (accept, claim, settle).

It must not know who calls, nor decide anything: rules live in domain/, transactions in service/.
Invariant: a message is acknowledged only after accept() committed it, and its row has one outcome for ever.
"""
