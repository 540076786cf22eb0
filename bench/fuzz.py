"""Fuzz one of tests/fuzz/targets.py, guided by coverage: `python -m bench fuzz pdu --seconds 60`.

What makes a target fail is written to `--artifacts`, and run again by naming the file. Needs atheris (PyPI).
"""

import argparse
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> int:
    try:
        import atheris
    except ImportError:
        print("fuzzing needs atheris: .venv/bin/python -m pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["caplai"]):
        from tests.fuzz.targets import TARGETS
    parser = argparse.ArgumentParser(prog="python -m bench fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("file", nargs="?", type=Path, help="run this input alone")
    parser.add_argument("--seconds", type=int, default=60, help="for so long (60)")
    parser.add_argument(
        "--artifacts", type=Path, default=Path(tempfile.gettempdir()), help="where failures go"
    )
    options = parser.parse_args(arguments)
    target, examples = TARGETS[options.name]
    if options.file:
        target(options.file.read_bytes())
        return 0
    with tempfile.TemporaryDirectory(prefix="caplai-corpus-") as corpus:
        for number, example in enumerate(examples):
            Path(corpus, str(number)).write_bytes(example)
        flags = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]
        flags += [f"-max_total_time={options.seconds}", f"-artifact_prefix={options.artifacts}/"]
        atheris.Setup(["bench fuzz", *flags, corpus], target)
        atheris.Fuzz()  # exits, with a status other than 0 if it found something
    return 0
