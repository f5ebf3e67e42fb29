#!/bin/sh
# Runs a test written for node:test.
if ! command -v node > /dev/null; then
  echo "there is no node on PATH: run ./bazelw once, or: apt-get install nodejs" >&2
  exit 1
fi
if ! [ -d "$NODE_PATH" ]; then
  echo "tests/npm/node_modules is missing: run ./bazelw once, or: cd tests/npm && npm ci" >&2
  exit 1
fi
NODE_PATH=$PWD/$NODE_PATH exec node "$@"
