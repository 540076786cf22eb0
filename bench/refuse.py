"""Messages that end in a refusal: a wave of strangers' phones, against a wave of owners in the same run.

The bar (bar.md): at least 1.3 times the wave's rate. Both at the rate that is answered ("max").
"""

from bench import _measure
from bench._crowd import REFUSALS, Mix
from bench.wave import parser_of, texts, world


def main(arguments: list[str]) -> int:
    options = parser_of("refuse", __doc__).parse_args(arguments)
    with world(options, "refuse") as it:
        wave = it.wave(texts(options, Mix(), 0.0))
        refused = it.wave(texts(options, REFUSALS, 0.0))
    ratio = refused["completed_per_second"] / wave["completed_per_second"]
    broken = [*wave["broken"], *refused["broken"]]
    if refused["reissues_per_second"]:
        broken.append("a stranger was issued a password")
    names = ("completed_per_second", "p50_ms", "p99_ms", "cpu_us_per_reply", "per_reply")
    report = {
        "refused_over_wave": round(ratio, 2),
        "bar": 1.3,
        **{f"wave_{name}": wave[name] for name in names},
        **{f"refused_{name}": refused[name] for name in names},
        "machine": wave["machine"],
        "broken": broken,
    }
    _measure.show(report, as_json=options.json)
    return 1 if broken else 0
