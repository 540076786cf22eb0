"""`python -m bench NAME`: run one of them; `python -m bench` lists them."""

import importlib
import pkgutil
import sys

import bench


def main() -> int:
    names = sorted(
        module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m bench NAME [--help]\nNAME: {', '.join(names)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
