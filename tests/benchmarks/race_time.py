"""Times the whole way to 99 % of the parameters: ours and Torch-Pruning with all weights fine-tuned, in turn.

python tests/benchmarks/race_time.py --data ../shared/data > docs/results/race_time.json

From the pretrained network through the transfer and six cuts, with the epochs of the race, on one thread; nothing is
evaluated. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from race import CONTESTANTS, transferred
from race_data import Images, load
from race_networks import load_network
from race_training import Settings, Trainer

NAMES = ("default", "torch-pruning taylor, fine-tuned", "default, plain loss")
SETTINGS = Settings(ratios=(0.5, 0.75, 0.9, 0.95, 0.98, 0.99))
REPEATS = 2


def timed(name: str, images: Images, data: Path, seed: int) -> dict[str, Any]:
    """Run one contestant on the first fold, and return how long it took."""
    contestant = CONTESTANTS[name]
    network = load_network("resnet18", data, seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), time.process_time()
        start = Trainer(images, 0, seed, SETTINGS)
        network, _ = transferred(contestant.start, network, start, Path(folder) / "transferred.pt")
        *_, (ratio, _) = contestant.run(network, Trainer(images, 0, seed + 1000, SETTINGS))
        taken = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
    return {"contestant": name, "seed": seed, "ratio": ratio, **{key: round(value, 1) for key, value in taken.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of shared data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for data in ("radiographs", "pneumoniamnist"):
        images = load(data, arguments.data)
        for seed in range(REPEATS):
            for name in NAMES:
                rows.append({"data": data, **timed(name, images, arguments.data, seed)})
                print(rows[-1], file=sys.stderr, flush=True)
    command = "python " + " ".join(["tests/benchmarks/race_time.py", *sys.argv[1:]])
    print(json.dumps({"command": command, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
