"""What an evaluation takes from the search in its workdir, unless it is told otherwise."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from absl import flags

# Flags by their names, which are also those of the settings that a run stores.
NAMES = (
    "dataset", "data_dir", "train_examples", "model", "optimizer", "learning_rates", "weight_decay", "batch_size", "epochs",
    "schedule", "compute_dtype", "seed",
)  # fmt: skip


class Inherited:
    """Flags with the settings of a search in place of defaults; it reads as absl's FlagValues do."""

    def __init__(self, values: flags.FlagValues, stored: Mapping[str, Any]):
        """`stored`: the search's settings, empty where there is none. What was given on the command line or in a flag file
        stands, and what another data set has of its own."""
        self._values = values
        another = values["dataset"].present and values.dataset != stored.get("dataset")
        of_its_data = ("train_examples",) if another else ()
        self.names = tuple(n for n in NAMES if n in stored and not values[n].present and n not in of_its_data)
        self._taken = {name: stored[name] for name in self.names}
        if "learning_rates" in self._taken:
            self._taken["learning_rates"] = [repr(rate) for rate in stored["learning_rates"]]

    def __getattr__(self, name: str) -> Any:
        return self._taken[name] if name in self._taken else getattr(self._values, name)

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(value=getattr(self, name))


def compared(settings: Mapping[str, Any], stored: Mapping[str, Any], workdir: str) -> str:
    """A line that says how an evaluation's settings differ from those of the search in `workdir`."""
    settings = json.loads(json.dumps(settings))

    def shown(value: Any) -> str:
        return ",".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)

    different = [
        f"--{name}={shown(settings[name])} instead of {shown(stored[name])}"
        for name in NAMES
        if name in stored and name in settings and settings[name] != stored[name]
    ]
    if not different:
        return f"settings as in the search in {workdir}"
    return f"unlike the search in {workdir}: {', '.join(different)}; all else as there"
