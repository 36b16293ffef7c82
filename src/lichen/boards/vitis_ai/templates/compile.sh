#!/usr/bin/env bash
# Compile the quantised networks for the board's DPU: run it in AMD's container, after quantize.py.
set -euo pipefail
cd "$(dirname "$0")"

fail() {
    echo "compile.sh: error: $1" >&2
    exit 1
}

command -v vai_c_xir >/dev/null || fail "vai_c_xir is not on the PATH: run this in the container of \
Vitis AI @VITIS_AI@, in the environment vitis-ai-pytorch; README.md has the command"

# arch.json here is that of Vitis AI @VITIS_AI@; a container of another release has another one, and
# the board's image would refuse what it compiles.
installed=@ARCH@
if [[ -f $installed ]] && ! grep -qi '@FINGERPRINT@' "$installed"; then
    fail "$installed is not for the DPU @FINGERPRINT@: the container is of another release than \
Vitis AI @VITIS_AI@; take @CONTAINER@"
fi

mkdir -p xmodel
for network in networks/*/; do
    name=$(basename "$network")
    source=quantize_result/$name/Network_int.xmodel
    [[ -f $source ]] || fail "$source is not there: run \
python quantize.py --quant_mode test --deploy first"
    vai_c_xir -x "$source" -a arch.json -o xmodel -n "$name-@WEIGHTS@"
done
