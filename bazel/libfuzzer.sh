#!/bin/sh
# Runs a libFuzzer binary as a test: libfuzzer.sh BINARY CORPUS [OPTION...]. The corpus is only read;
# an input that fails is kept among the test's outputs.
set -u

fuzzer=$1 corpus=$2
shift 2
mkdir "$TEST_TMPDIR/found" || exit 1
exec "$fuzzer" "$TEST_TMPDIR/found" "$corpus" -artifact_prefix="$TEST_UNDECLARED_OUTPUTS_DIR/" \
  -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -max_total_time=5 "$@"
