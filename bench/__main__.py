"""python -m bench: measure, print the tables, and exit 1 if a `must` is missed. See docs/performance.md."""

from __future__ import annotations

import argparse
import json
import sys
import time

import pinfold
from bench import chart, ground, report
from bench.cases import ALL
from bench.report import Data
from bench.words import Case, Measured, Missing


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=100, help="rounds of the quick cases; others do a share of it (100)"
    )
    parser.add_argument("--only", nargs="+", choices=[case.name for case in ALL], metavar="CASE", help="see --list")
    parser.add_argument("--list", action="store_true", help="list the cases and what is asked of them, and exit")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found ('-': stdout, without tables)")
    parser.add_argument("--svg", metavar="FILE", help="draw it")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables between the two marks in this document")
    parser.add_argument("--from", metavar="FILE", dest="source", help="measure nothing: take what --json has written")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def _list() -> None:
    for case in ALL:
        print(f"{case.name:14}{case.title.replace('`', '')}")
        for goal in case.goals:
            print(f"{'':14}  {goal.title.replace('`', '')}: must {goal.must}, aim {goal.aim}")


def _measured(case: Case, asked: int) -> Data:
    began, waited = time.monotonic(), ground.waited()
    try:
        found = case.measure(case.rounds(asked))
    except Missing as why:
        found = Measured({}, skipped={"all of it": str(why)})
    return report.case(case, found, time.monotonic() - began, ground.waited() - waited)


def _backend() -> str:
    """Which one our runs get here."""
    return pinfold.run(["/bin/true"]).placement.backend


def _measure(arguments: argparse.Namespace, *, talk: bool) -> Data:
    data = report.head(arguments.rounds, _backend())
    if talk:
        print(report.about(data), flush=True)
    for case in ALL:
        if arguments.only is None or case.name in arguments.only:
            data["cases"].append(_measured(case, arguments.rounds))
            if talk:
                print(report.text(data["cases"][-1]), flush=True)
    return data


def _write(path: str, content: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def main() -> int:
    """The command."""
    arguments = _arguments()
    if arguments.list:
        _list()
        return 0
    if arguments.source:
        with open(arguments.source, encoding="utf-8") as file:
            data = json.load(file)
        if data["schema"] != report.SCHEMA:
            raise SystemExit(f"{arguments.source}: schema {data['schema']}, and this is {report.SCHEMA}")
    else:
        data = _measure(arguments, talk=arguments.json != "-")
    if arguments.json == "-":
        json.dump(data, sys.stdout, indent=1)
    else:
        print(report.summary(data))
        if arguments.json:
            _write(arguments.json, json.dumps(data, indent=1) + "\n")
    if arguments.svg:
        _write(arguments.svg, chart.svg(data))
    if arguments.markdown:
        with open(arguments.markdown, encoding="utf-8") as file:
            document = file.read()
        _write(arguments.markdown, report.replaced(document, report.markdown(data)))
    return int(report.missed(data))


if __name__ == "__main__":
    sys.exit(main())
