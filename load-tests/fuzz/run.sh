#!/bin/sh
# ./run.sh TARGET [SECONDS [OPTION…]]: builds a target and runs it, ten minutes unless told otherwise.
# A finding ends it with an error and lies in artifacts/; `target/*/release/TARGET FILE` shows it again.
set -eu
cd "$(dirname "$0")"
target=$1 seconds=${2:-600}
shift $(($# < 2 ? $# : 2))
cargo build --release --bin "$target"
mkdir -p "corpus/$target" artifacts
# What was found interesting is kept in the first directory and is where the next run starts.
set -- "$@" "corpus/$target"
if [ -d "seeds/$target" ]; then set -- "$@" "seeds/$target"; fi
if [ -f "dictionaries/$target" ]; then set -- "$@" "-dict=dictionaries/$target"; fi
# No input may take a second, or the process more than 256 MiB.
exec target/*/release/"$target" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=256 -max_len=8192 \
    -artifact_prefix="artifacts/$target-" -print_final_stats=1 "$@"
