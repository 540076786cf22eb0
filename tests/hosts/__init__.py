"""What needs machines of its own: hosts on a network, a disk that is full, an old version beside a new one.

Each test is a story that runs in a process of its own, in namespaces of its own (apart.py): what it makes,
cuts and kills is gone with it, and nothing of the machine's network or mounts is touched.
"""
