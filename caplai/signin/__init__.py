"""Authentication (floor 3): the backend, the stage that chooses a password, the pages and the app's endpoints.

It must not know the other doors, nor decide about guesses and credentials: service/credentials.py does.
Invariant: an issued password leads to the page that chooses one, and to nothing else.
"""
