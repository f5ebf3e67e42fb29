"""@rules_proto//proto:defs.bzl, as far as @bazel_tools asks for it: Bazel's own proto rules."""

proto_lang_toolchain = native.proto_lang_toolchain
proto_library = native.proto_library
