"""What XLA dumps of a GPU's program: the thunks, which are what the host launches."""

import pathlib
import re

_LINE = re.compile(r"( *)(\d+): (k\w+)")
_ANNOTATION = re.compile(r'profile_annotation: "([^"]*)"')
_IDENTITY = re.compile(r"thunk_id: (\d+)")
CONTROL = ("kWhile", "kConditional")


def on_host(sequence: str, metadata: str) -> set[str]:
    """Names of the HLO conditionals and loops that no CUDA graph holds: the host steers them.

    Args:
      sequence: text of `thunk_sequence_after_thunk_passes`: what stands deeper than a kCommandBuffer is in its graph.
      metadata: text of `thunk_metadata`: the name of each thunk's instruction.
    """
    names: dict[int, str] = {}
    for block in metadata.split("thunk_metadata {"):
        if annotation := _ANNOTATION.search(block):
            identity = _IDENTITY.search(block)
            names[int(identity[1]) if identity else 0] = annotation[1]
    found, graph = set[str](), None
    for line in sequence.splitlines():
        if not (match := _LINE.match(line)):
            continue
        depth, number, kind = len(match[1]), int(match[2]), match[3]
        if graph is not None and depth <= graph:
            graph = None
        if graph is None and kind == "kCommandBuffer":
            graph = depth
        elif graph is None and kind in CONTROL:
            found.add(names.get(number, f"thunk {number}"))
    return found


def read(folder: str | pathlib.Path) -> set[str] | None:
    """The same of the largest program dumped in `folder`; None where XLA wrote no thunks."""
    sequences = sorted(
        pathlib.Path(folder).glob("*thunk_sequence_after_thunk_passes.txt"), key=lambda p: p.stat().st_size
    )
    if not sequences:
        return None
    metadata = pathlib.Path(str(sequences[-1]).replace("thunk_sequence_after_thunk_passes", "thunk_metadata"))
    texts = (p.read_text(encoding="utf-8", errors="replace") for p in (sequences[-1], metadata))
    return on_host(*texts) if metadata.exists() else None
