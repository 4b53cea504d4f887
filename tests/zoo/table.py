"""Prints the zoo: pattern, expected, found, ok.

``python tests/zoo/table.py [-v] [WORD...]``: with words,
 only the cases whose name, module, world or expected kind contains one.
``-v`` tells all that was said of the cases that failed, ``--texts`` the text, proof and
remedy of the main finding of each case, for a reader.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]
    del sys.path[2]  # this directory: its modules are zoo's

from zoo.harness import running
from zoo.judge import Result
from zoo.registry import Case, load


def main(words: list[str]) -> int:
    """Run the cases and print a line for each."""
    flags = [word for word in words if word.startswith("-")]
    words = [word for word in words if not word.startswith("-")]
    cases = [
        case
        for case in load().values()
        if not words or any(word in _all_of(case) for word in words)
    ]
    wrong: list[Result] = []
    print(f"{'pattern':<34} {'world':<10} {'expected':<40} {'found':<40} ok")
    with running(cases) as begin:
        futures = [begin(case) for case in cases]
        for case, future in zip(cases, futures, strict=True):
            result = future.result()
            print(_line(case, result), flush=True)
            if "--texts" in flags:
                print(*_texts(case, result), sep="\n")
            if not result.ok:
                wrong.append(result)
    print(f"{len(cases) - len(wrong)} of {len(cases)} are right")
    if "-v" in flags:
        for result in wrong:
            print("\n" + result.describe())
    return bool(wrong)


def _texts(case: Case, result: Result) -> list[str]:
    return [
        f"    {said.kind}: {said.text}\n    proof: {said.proof}\n    -> {said.remedy}"
        for said in result.said
        if said.kind in case.kinds
    ]


def _all_of(case: Case) -> str:
    return " ".join([case.name, case.module, case.world, *case.kinds])


def _line(case: Case, result: Result) -> str:
    expected = "nothing"
    if case.kinds:
        lines = ",".join(str(line) for _, line in sorted(case.lines(case.marks)))
        expected = f"{'|'.join(case.kinds)} {case.module}:{lines}"
    found = ", ".join(dict.fromkeys(said.kind for said in result.said)) or "nothing"
    if result.crash:
        found = "(crashed)"
    ok = "ok" if result.ok else "NO"
    return f"{case.name:<34} {case.world:<10} {expected:<40} {found:<40} {ok}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
