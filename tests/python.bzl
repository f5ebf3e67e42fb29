"""Tests in Python, under the system's /usr/bin/python3, for which Debian packages gRPC.

No other Python is looked for: one from elsewhere has neither grpc nor google.protobuf.
"""

load("//bazel:proto.bzl", "ProtoSourcesInfo")

_ROOT = "proto/"

def _python_stubs_impl(ctx):
    sources = depset(transitive = [proto[ProtoSourcesInfo].transitive for proto in ctx.attr.protos]).to_list()
    names = [source.short_path[len(_ROOT):] for source in sources]
    outputs = [
        ctx.actions.declare_file(ctx.label.name + "/" + name[:-len(".proto")] + suffix)
        for name in names
        for suffix in ["_pb2.py", "_pb2_grpc.py"]
    ]
    folder = outputs[0].path[:-len(outputs[0].short_path)] + ctx.label.package + "/" + ctx.label.name
    arguments = ctx.actions.args()
    arguments.add("--proto_path=" + _ROOT)
    arguments.add("--python_out=" + folder)
    arguments.add("--grpc_python_out=" + folder)
    arguments.add("--plugin=protoc-gen-grpc_python=" + ctx.executable._plugin.path)
    arguments.add_all(names)
    ctx.actions.run(
        executable = ctx.executable._protoc,
        arguments = [arguments],
        inputs = sources,
        outputs = outputs,
        tools = [ctx.executable._plugin],
        mnemonic = "PythonStubs",
        progress_message = "Generating %s" % ctx.label,
    )
    return [DefaultInfo(files = depset(outputs), runfiles = ctx.runfiles(outputs))]

# Python's modules for deka_proto_library targets and all that they import, in a folder of the target's name.
python_stubs = rule(
    implementation = _python_stubs_impl,
    attrs = {
        "protos": attr.label_list(mandatory = True, providers = [ProtoSourcesInfo]),
        "_protoc": attr.label(
            default = "@com_google_protobuf//:protoc",
            executable = True,
            cfg = "exec",
            allow_single_file = True,
        ),
        "_plugin": attr.label(
            default = "@com_github_grpc_grpc//src/compiler:grpc_python_plugin",
            executable = True,
            cfg = "exec",
            allow_single_file = True,
        ),
    },
)

def deka_python_test(name, main, size = "medium", data = [], env = {}, **kwargs):
    """A test in Python that may use the harness, the generated modules, deka-agent and the testcases.

    `bazel test --test_arg=Class.test_case` runs one case.

    Args:
      name: of the test
      main: the file with the cases; its last line calls bridge.main()
      size: as in sh_test
      data: more files
      env: more environment variables
      **kwargs: as in sh_test
    """
    environment = {
        "DEKA_AGENT": "$(rootpath //server:deka-agent)",
        "PYTHONPATH": "tests/harness:tests/stubs",
    }
    environment.update(env)
    native.sh_test(
        name = name,
        size = size,
        srcs = ["//tests:python.sh"],
        args = ["$(rootpath %s)" % main],
        data = data + [
            main,
            "//server:deka-agent",
            "//tests:stubs",
            "//tests/harness",
            "//tests/testcases",
        ],
        env = environment,
        **kwargs
    )
