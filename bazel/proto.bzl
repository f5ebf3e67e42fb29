"""Code from .proto files, by the system's protoc.

Files are named from the folder `proto/` on: `import "google/rpc/status.proto"` and
`#include "google/rpc/status.pb.h"`.
"""

load(":cc.bzl", "CXX")

ProtoSourcesInfo = provider(
    doc = "The .proto files of a target and of all that they import.",
    fields = {
        "direct": "list of File: the target's own",
        "transitive": "depset of File: those and what they import",
    },
)

_ROOT = "proto/"

def _import_path(file):
    """The name by which other .proto files import this one."""
    path = file.short_path
    start = path.rfind("/" + _ROOT) + 1 if path.startswith("../") else 0
    if not path[start:].startswith(_ROOT):
        fail("%s is not below %s" % (path, _ROOT))
    return path[start + len(_ROOT):]

def _root_of(file):
    return file.path[:-len(_import_path(file)) - 1]

def _proto_sources_impl(ctx):
    return [
        # In the runfiles of a test that has them as data.
        DefaultInfo(files = depset(ctx.files.srcs), runfiles = ctx.runfiles(ctx.files.srcs)),
        ProtoSourcesInfo(
            direct = ctx.files.srcs,
            transitive = depset(
                ctx.files.srcs,
                transitive = [dep[ProtoSourcesInfo].transitive for dep in ctx.attr.deps],
            ),
        ),
    ]

_proto_sources = rule(
    implementation = _proto_sources_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "deps": attr.label_list(providers = [ProtoSourcesInfo]),
    },
)

def _generate_impl(ctx):
    info = ctx.attr.proto[ProtoSourcesInfo]
    sources = ctx.files.srcs or info.direct
    outputs = []
    for source in sources:
        for suffix in ctx.attr.suffixes:
            name = source.basename[:-len(".proto")] + suffix
            outputs.append(ctx.actions.declare_file(name))
    roots = {_root_of(file): True for file in info.transitive.to_list()}.keys()

    # The package is proto/a/b, the output bin/proto/a/b/x.pb.h, and protoc writes a/b/x.pb.h below bin/proto.
    out = outputs[0].path[:-len(_import_path(sources[0])) - len(ctx.attr.suffixes[0]) + len(".proto") - 1]
    arguments = ctx.actions.args()
    arguments.add_all(roots, format_each = "--proto_path=%s")
    arguments.add("--%s_out=%s" % (ctx.attr.language, out))
    tools = []
    if ctx.executable.plugin:
        arguments.add("--plugin=protoc-gen-%s=%s" % (ctx.attr.language, ctx.executable.plugin.path))
        tools.append(ctx.executable.plugin)
    arguments.add_all([_import_path(source) for source in sources])
    ctx.actions.run(
        executable = ctx.executable._protoc,
        arguments = [arguments],
        inputs = info.transitive,
        outputs = outputs,
        tools = tools,
        mnemonic = "Protoc",
        progress_message = "Generating %s" % ctx.label,
    )

    # A system include path: no warnings in who includes a generated header, either.
    include_root = cc_common.create_compilation_context(system_includes = depset([out]))
    return [
        DefaultInfo(files = depset(outputs)),
        CcInfo(compilation_context = include_root),
    ]

_generate = rule(
    implementation = _generate_impl,
    attrs = {
        "proto": attr.label(mandatory = True, providers = [ProtoSourcesInfo]),
        "srcs": attr.label_list(allow_files = [".proto"], doc = "only these files of `proto`"),
        "language": attr.string(mandatory = True),
        "suffixes": attr.string_list(mandatory = True),
        "plugin": attr.label(executable = True, cfg = "exec", allow_single_file = True),
        "_protoc": attr.label(
            default = "@com_google_protobuf//:protoc",
            executable = True,
            cfg = "exec",
            allow_single_file = True,
        ),
    },
)

def _cc(name, language, headers, sources, deps, generate, visibility):
    """A cc_library of generated code: C++20, but none of our warnings."""
    _generate(name = name + "_headers", suffixes = headers, language = language, **generate)
    _generate(name = name + "_sources", suffixes = sources, language = language, **generate)
    native.cc_library(
        name = name,
        srcs = [name + "_sources"],
        hdrs = [name + "_headers"],
        copts = CXX,
        deps = deps + [name + "_headers"],
        visibility = visibility,
    )

def _cc_proto(label):
    """The C++ messages of a deka_proto_library; "//a/b" is "//a/b:b"."""
    if ":" not in label:
        label += ":" + label.rpartition("/")[2]
    return label + "_cc_proto"

def deka_proto_library(name, srcs, deps = [], visibility = None):
    """.proto files and their C++ messages.

    Makes `name`, whose files are the sources, and `name`_cc_proto, a cc_library.

    Args:
      name: of the sources
      srcs: .proto files
      deps: other deka_proto_library targets that these import; google/protobuf needs none
      visibility: of both
    """
    _proto_sources(name = name, srcs = srcs, deps = deps, visibility = visibility)
    _cc(
        name = name + "_cc_proto",
        language = "cpp",
        headers = [".pb.h"],
        sources = [".pb.cc"],
        deps = [_cc_proto(dep) for dep in deps] + ["@com_google_protobuf//:protobuf"],
        generate = {"proto": name},
        visibility = visibility,
    )

def deka_grpc_library(name, srcs, deps, visibility = None):
    """A cc_library of the gRPC code of services, with their messages.

    Args:
      name: of the cc_library
      srcs: the .proto files that define the services
      deps: the one deka_proto_library that these belong to
      visibility: as in cc_library
    """
    if len(deps) != 1:
        fail("%s: deps must be the one deka_proto_library that srcs belong to" % name)
    _cc(
        name = name,
        language = "grpc",
        headers = [".grpc.pb.h"],
        sources = [".grpc.pb.cc"],
        deps = [_cc_proto(deps[0]), "@com_github_grpc_grpc//:grpc++"],
        generate = {
            "proto": deps[0],
            "srcs": srcs,
            "plugin": "@com_github_grpc_grpc//src/compiler:grpc_cpp_plugin",
        },
        visibility = visibility,
    )
