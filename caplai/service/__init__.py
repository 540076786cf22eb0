"""The verbs (floor 2), one transaction each: the only code that writes domain rows.

It must not know HTTP or SMPP. Whoever changes an account's cases, guesses or credentials holds the
account's lock (locks.py) while it looks and writes.
Invariant: there are never two valid issued passwords for one account.
"""
