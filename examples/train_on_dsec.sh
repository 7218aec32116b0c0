#!/bin/sh
# Finetunes `small` on DSEC and makes the zip for its benchmark:
#
#     examples/train_on_dsec.sh ROOT OUT [options of flowfuse-train, such as --batch 8]
#
# ROOT holds DSEC in any of its layouts (flowfuse-data download-dsec ROOT fetches it). Nothing on DSEC has been measured
# with flowfuse: the recipe is a start, not a result. A GPU is wanted. The same command goes on after an interruption.
set -eu

if [ $# -lt 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
root=$1 out=$2
shift 2

flowfuse-train --config dsec --data "dsec:$root" -o "$out/run" --resume "$@"
# The best by validation on the sequences that are held out: no sequence of the benchmark is among them.
flowfuse-infer "$root/zurich_city_01_a" -o "$out/zurich_city_01_a" --checkpoint "$out/run/best.safetensors"
if [ -d "$root/test_forward_optical_flow_timestamps" ]; then
    flowfuse-infer "$root" --submission "$out/submission.zip" --checkpoint "$out/run/best.safetensors"
fi
