"""Fuzzes the language: whatever is given to it, `parse` returns an expression that reads back or raises one of its two errors.

    python tests/fuzz_language.py --inputs=10000000 --processes=2     grammar and mutation, deterministic by --seed
    python tests/fuzz_language.py --guided --inputs=1000000           guided by coverage (needs `pip install atheris`)

Prints one line of JSON with what was seen; ends with an exit code other than 0 on the first input that breaks a promise,
and shows it.
"""

import argparse
import collections
import json
import multiprocessing
import pathlib
import random
import signal
import sys
import tempfile
import time

SECONDS = 2.0  # of processor time: an input that takes longer hangs


class Broken(AssertionError):
    """A promise of the language does not hold; the message holds the input."""


def check(text: str) -> str:
    """What became of `text`: the name of an error, "tree" or "chain". Raises Broken."""
    from bpevo.rules import InfeasibleEquation, RuleSyntaxError, parse

    try:
        expression = parse(text)
    except (RuleSyntaxError, InfeasibleEquation) as error:
        message = str(error)
        if not message or not all(c.isprintable() or c == "\n" for c in message):
            raise Broken(f"{text!r}: no printable message, {message!r}") from None
        return type(error).__name__
    if parse(str(expression)) != expression:
        raise Broken(f"{text!r}: prints as {str(expression)!r}, which reads as another expression")
    if not expression.latex:
        raise Broken(f"{text!r}: no LaTeX")
    try:
        equation = expression.to_equation(3)
    except (RuleSyntaxError, InfeasibleEquation):
        return "tree"
    if parse(str(equation)).to_equation(3) != equation or not equation.key:
        raise Broken(f"{text!r}: its chain prints as {str(equation)!r}, which reads as another chain")
    return "chain"


class Source:
    """Endless texts: grown by the grammar, broken by mutation, spliced, and noise."""

    def __init__(self, seed: int):
        from bpevo.rules import BINARIES, NAMED, OPERANDS, STATISTICS, UNARIES

        self._random = random.Random(seed)
        self._operands = [m.format(o) for o in OPERANDS for m in ("{}", *(f"{n}({{}})" for n in STATISTICS))]
        self._unaries = [u.spelling for u in UNARIES.values()] + ["-{x}", "({x})", "{x}.T", "{x} - {c}", "{x}*{c}"]
        self._binaries = [b.spelling for b in BINARIES.values()]
        self._corpus = sorted(set(NAMED.values()))
        self._tokens = [
            *OPERANDS, *UNARIES, *BINARIES, *"()+-*/@.,=<>~|&^%!?[]{}:;'\"#\\", "**", ".T", "0x1", "1e999", "inf", "nan", "1_0",
            "0.", ".5", "1j", "lambda", "__import__('os')", "\x1b[31m", "\x00", "\n", "\t", "é", "\u202e", "\U0001d420", "\ud800",
            " if g else h", "for", "*g", "**g", "None", "True", "f'{g}'", "b'g'", "...", ":=", "await g", "not g",
        ]  # fmt: skip

    def __call__(self) -> str:
        r = self._random
        kind = r.random()
        if kind < 0.35:
            text = self._grown(r.choice((0, 1, 1, 2, 2, 3, 4, 6)))
            if len(text) < 300 and r.random() < 0.3:
                self._corpus[r.randrange(len(self._corpus))] = text
            return text
        if kind < 0.9:
            return self._broken(r.choice(self._corpus))
        if kind < 0.97:
            return " ".join(r.choices(self._tokens, k=r.randrange(12)))
        if kind < 0.99:
            return "".join(chr(r.choice((r.randrange(128), r.randrange(0x110000)))) for _ in range(r.randrange(40)))
        return self._deep()

    def constant(self) -> str:
        r = self._random
        kind = r.randrange(5)
        if kind < 3:
            return (repr(r.uniform(-1, 2)), str(r.randrange(-3, 12)), repr(10 ** r.uniform(-50, 50)))[kind]
        return r.choice(
            ("0.01", "0.1", "0.5", "1.0", "2.0") if kind == 3 else ("1e6", "1000001", "-0.0", "1e-46", "00", "1e400")
        )

    def _grown(self, depth: int) -> str:
        r = self._random
        if depth <= 0:
            return r.choice(self._operands)
        if r.random() < 0.5:
            return r.choice(self._unaries).format(x=self._grown(depth - 1), c=self.constant())
        x, y = self._grown(depth - 1), self._grown(depth - r.choice((1, 1, 2, 3)))
        return f"({r.choice(self._binaries).format(x=x, y=y)})"

    def _broken(self, text: str) -> str:
        r = self._random
        for _ in range(r.choice((1, 1, 1, 2, 3, 5))):
            i, j = sorted((r.randrange(len(text) + 1), r.randrange(len(text) + 1)))
            match r.randrange(6):
                case 0:
                    text = text[:i] + r.choice(self._tokens) + text[i:]
                case 1:
                    text = text[:i] + text[i + 1 :]
                case 2:
                    text = text[:i] + text[j:]
                case 3:
                    text = text[:j] + text[i:]
                case 4:
                    other = r.choice(self._corpus)
                    text = text[:i] + other[r.randrange(len(other) + 1) :]
                case 5:
                    text = text[:i] + self.constant() + text[j:]
        return text[:2000]

    def _deep(self) -> str:
        r = self._random
        n = r.choice((10, 63, 64, 65, 200, 499, 1000, 5000, 100_000))
        brackets = (
            ("(", ")"),
            ("-", ""),
            ("relu(", ")"),
            ("", ".T"),
            ("", "+g"),
            ("0.5*", ""),
            ("g@", ""),
            ("min(g,", ")"),
        )
        start, end = r.choice(brackets)
        return start * n + "g" + end * (n if r.random() < 0.8 else n - 1)


def _hangs(signum, frame):
    raise Broken("hangs")


def fuzz(arguments: tuple[int, int]) -> dict[str, int]:
    """Checks `inputs` texts of the source with `seed`; returns how many ended how."""
    inputs, seed = arguments
    source, seen = Source(seed), collections.Counter()
    signal.signal(signal.SIGVTALRM, _hangs)
    for _ in range(inputs):
        text = source()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            seen[check(text)] += 1
        except Broken:
            raise
        except BaseException as error:
            raise Broken(f"{text[:2000]!r}: {type(error).__name__}: {error}") from error
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return dict(seen)


def guided(inputs: int, seed: int) -> None:
    """Hands over to libFuzzer, which ends the process; an input that breaks a promise ends it with a report."""
    import atheris

    with atheris.instrument_imports(include=["bpevo.rules"]):
        from bpevo.rules import BINARIES, NAMED, OPERANDS, STATISTICS, UNARIES
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz_language"))
    (folder / "corpus").mkdir()
    for name, text in NAMED.items():
        (folder / "corpus" / name).write_text(text)
    words = [*OPERANDS, *STATISTICS, *UNARIES, *BINARIES, ".T", " + ", " @ ", ", 0.1)", "0.5*"]
    (folder / "words").write_text("".join(f'"{w}"\n' for w in words))

    def one(data: bytes) -> None:
        check(data.decode("utf-8", "surrogateescape"))

    options = [f"-runs={inputs}", f"-seed={seed or 1}", "-max_len=1200", "-timeout=5", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-dict={folder / 'words'}", str(folder / "corpus")], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--guided", action="store_true")
    options = parser.parse_args()
    if options.guided:
        return guided(options.inputs, options.seed)
    start, piece = time.monotonic(), 20_000
    pieces = [(min(piece, options.inputs - i), options.seed + i // piece) for i in range(0, options.inputs, piece)]
    seen: collections.Counter = collections.Counter()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done in pool.imap_unordered(fuzz, pieces):
            seen.update(done)
    seconds = round(time.monotonic() - start)
    print(json.dumps({"inputs": seen.total(), "seconds": seconds, "seed": options.seed, **dict(sorted(seen.items()))}))


if __name__ == "__main__":
    main()
