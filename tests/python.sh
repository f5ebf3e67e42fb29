#!/bin/sh
# Runs a test written in Python: the file, then unittest's arguments.
if ! /usr/bin/python3 -c 'import grpc, google.protobuf'; then
  echo "/usr/bin/python3 has no gRPC: apt-get install python3-grpcio python3-protobuf" >&2
  exit 1
fi
# -P: the folder of the file is no place to import from. -B: no __pycache__ beside the sources.
exec /usr/bin/python3 -P -B "$@"
