"""One account for the agency's app, its portal and its partners: OpenID Connect through allauth's `idp.oidc`.

It knows the protocol and its clients; who may still be spoken for is decided by service/federation.py.
Invariant: no grant, code or token outlives the stamp of the login that it was made under.
"""
