"""Benchmarks and the chaos run: `python -m bench NAME [--json]`. Each checks its own result.

They use the package as its users do (real processes, sockets, PostgreSQL with fsync on), on loopback only.
"""
