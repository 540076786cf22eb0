"""Programs that are not ours, at the other end of our wire: npm's smpp and Debian's Kannel.

They must not share a line of our codec: what they understand, we did not only agree on with ourselves.
Every test here is marked `peer`: skipped with a reason where its program is missing, and failed in CI.
"""
