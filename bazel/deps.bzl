"""What deka-bridge builds against: Debian's packages, with no network.

A workspace that depends on this one:

    local_repository(name = "deka_bridge", path = "...")
    load("@deka_bridge//bazel:deps.bzl", "deka_bridge_dependencies")
    deka_bridge_dependencies()

A repository that is defined already is left alone, so that workspace may build any of them from
source, or take them from elsewhere.
"""

load(":system.bzl", "files_repository", "npm_repository", "system_repository")

# Targets of @com_google_absl and the pkg-config module of each.
_ABSL = {
    "absl/base:base": "absl_base",
    "absl/base:core_headers": "absl_core_headers",
    "absl/cleanup:cleanup": "absl_cleanup",
    "absl/container:flat_hash_map": "absl_flat_hash_map",
    "absl/container:flat_hash_set": "absl_flat_hash_set",
    "absl/container:inlined_vector": "absl_inlined_vector",
    "absl/flags:flag": "absl_flags",
    "absl/flags:parse": "absl_flags_parse",
    "absl/flags:usage": "absl_flags_usage",
    "absl/functional:any_invocable": "absl_any_invocable",
    "absl/functional:function_ref": "absl_function_ref",
    "absl/hash:hash": "absl_hash",
    "absl/memory:memory": "absl_memory",
    "absl/random:random": "absl_random_random",
    "absl/status:status": "absl_status",
    "absl/status:statusor": "absl_statusor",
    "absl/strings:cord": "absl_cord",
    "absl/strings:str_format": "absl_str_format",
    "absl/strings:strings": "absl_strings",
    "absl/synchronization:synchronization": "absl_synchronization",
    "absl/time:time": "absl_time",
    "absl/types:span": "absl_span",
}

def deka_bridge_dependencies():
    """Defines each repository that deka-bridge needs and that is not defined yet."""

    # Bazel's own tools load these from GitHub, to find rules that Bazel has built in.
    _define(
        files_repository,
        name = "rules_cc",
        files = {Label("//bazel/stubs:rules_cc.bzl"): "cc/defs.bzl"},
        packages = ["", "cc"],
    )
    _define(
        files_repository,
        name = "rules_java",
        files = {Label("//bazel/stubs:rules_java.bzl"): "java/defs.bzl"},
        packages = ["", "java"],
    )
    _define(
        files_repository,
        name = "rules_proto",
        files = {Label("//bazel/stubs:rules_proto.bzl"): "proto/defs.bzl"},
        packages = ["", "proto"],
    )
    _define(
        files_repository,
        name = "remote_coverage_tools",
        files = {Label("//bazel/stubs:remote_coverage_tools.BUILD.bazel"): "BUILD.bazel"},
    )

    _define(
        system_repository,
        name = "com_google_absl",
        debian_package = "libabsl-dev",
        pkg_config = {target: [module] for target, module in _ABSL.items()},
    )
    _define(
        system_repository,
        name = "com_google_googletest",
        debian_package = "libgmock-dev",
        pkg_config = {":gtest": ["gmock", "gtest"]},
        # GoogleMock's main also starts GoogleTest.
        linkopts = {":gtest_main": ["-lgmock_main"]},
        deps = {":gtest_main": [":gtest"]},
    )
    _define(
        system_repository,
        name = "com_google_protobuf",
        debian_package = "libprotobuf-dev and protobuf-compiler",
        pkg_config = {":protobuf": ["protobuf"]},
        programs = {":protoc": "protoc"},
    )

    # Reflection and channelz register themselves, so the linker must not drop what nobody calls.
    _define(
        system_repository,
        name = "com_github_grpc_grpc",
        debian_package = "libgrpc++-dev and protobuf-compiler-grpc",
        pkg_config = {":grpc++": ["grpc++", "protobuf"]},
        linkopts = {
            ":grpc++_reflection": ["-Wl,--push-state,--no-as-needed", "-lgrpc++_reflection", "-Wl,--pop-state"],
            ":grpcpp_channelz": ["-Wl,--push-state,--no-as-needed", "-lgrpcpp_channelz", "-Wl,--pop-state"],
        },
        deps = {
            ":grpc++_reflection": [":grpc++"],
            ":grpcpp_channelz": [":grpc++"],
        },
        programs = {
            "src/compiler:grpc_cpp_plugin": "grpc_cpp_plugin",
            "src/compiler:grpc_python_plugin": "grpc_python_plugin",
        },
    )
    _define(
        system_repository,
        name = "com_github_google_benchmark",
        debian_package = "libbenchmark-dev",
        pkg_config = {":benchmark": ["benchmark"]},
        linkopts = {":benchmark_main": ["-lbenchmark_main"]},
        deps = {":benchmark_main": [":benchmark"]},
    )
    for name, debian_package, module in [
        ("cli11", "libcli11-dev", "CLI11"),
        ("fmt", "libfmt-dev", "fmt"),
        ("libuv", "libuv1-dev", "libuv"),
        ("simdjson", "libsimdjson-dev", "simdjson"),
        ("spdlog", "libspdlog-dev", "spdlog"),
    ]:
        _define(
            system_repository,
            name = name,
            debian_package = debian_package,
            pkg_config = {":" + name: [module]},
        )

    # What the tests take from npm.
    _define(
        npm_repository,
        name = "deka_npm",
        lock_file = Label("//tests/npm:package-lock.json"),
    )

def _define(rule, name, **kwargs):
    if not native.existing_rule(name):
        rule(name = name, **kwargs)
