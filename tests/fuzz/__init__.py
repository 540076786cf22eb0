"""Bytes from strangers: each target takes any bytes at all and asserts what must hold for them.

The tests beside this give each a short while of Hypothesis; `python -m bench fuzz NAME` gives it as long as you like,
guided by coverage (atheris). What was found stands in `test_fuzz.py` as an example of its own.
"""
