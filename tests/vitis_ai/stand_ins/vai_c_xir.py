"""Stand-in of the compiler vai_c_xir: see README.md beside."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("-x", "--xmodel", required=True)
parser.add_argument("-a", "--arch", required=True)
parser.add_argument("-o", "--output_dir", required=True)
parser.add_argument("-n", "--net_name", required=True)
args = parser.parse_args()
arch = json.loads(Path(args.arch).read_text())
assert set(arch) == {"fingerprint"} and int(arch["fingerprint"], 16) >> 56 == 1
held = pickle.loads(Path(args.xmodel).read_bytes()) | {"fingerprint": arch["fingerprint"]}
output = Path(args.output_dir)
output.mkdir(exist_ok=True)
(output / f"{args.net_name}.xmodel").write_bytes(pickle.dumps(held))
print("[UNILOG][INFO] Total device subgraph number 3, DPU subgraph number 1")
