"""Repositories made of what Debian has installed, under the labels that a source build would have."""

def _run(ctx, arguments, hint):
    result = ctx.execute(arguments)
    if result.return_code != 0:
        fail("\n%s failed: %s\n%s" % (
            " ".join([str(argument) for argument in arguments]),
            result.stderr.strip(),
            hint,
        ))
    return result.stdout.strip()

def _unique(items):
    return {item: True for item in items}.keys()

def _pkg_config(ctx, modules, hint):
    """Returns (version, defines, linkopts) of pkg-config modules."""
    program = ctx.which("pkg-config")
    if not program:
        fail("pkg-config is not installed. Run ./bazelw once, or: apt-get install pkg-config")
    version = _run(ctx, [program, "--modversion"] + modules, hint).replace("\n", " ")
    cflags = _run(ctx, [program, "--cflags"] + modules, hint).split(" ")
    libs = _run(ctx, [program, "--libs"] + modules, hint).split(" ")
    return (
        version,
        _unique([flag[2:] for flag in cflags if flag.startswith("-D")]),
        # gRPC's list names some of Abseil's libraries twenty times.
        _unique([flag for flag in libs if flag.startswith("-l") or flag == "-pthread"]),
    )

_LIBRARY = """
# {version}
cc_library(
    name = "{name}",
    defines = {defines},
    linkopts = {linkopts},
    deps = {deps},
)
"""

_PROGRAM = """
# {version}
exports_files(["{name}"])
"""

def _split(key):
    """"absl/status:status" is the target `status` of the package `absl/status`."""
    package, _, name = key.partition(":")
    return package, name

def _system_repository_impl(ctx):
    hint = "It comes with Debian's package %s. Run ./bazelw once, or: apt-get install %s" % (
        ctx.attr.debian_package,
        ctx.attr.debian_package,
    )
    packages = {}
    for key in _unique(ctx.attr.pkg_config.keys() + ctx.attr.linkopts.keys() + ctx.attr.deps.keys()):
        package, name = _split(key)
        version, defines, libs = "as installed", [], []
        if key in ctx.attr.pkg_config:
            version, defines, libs = _pkg_config(ctx, ctx.attr.pkg_config[key], hint)
        packages.setdefault(package, []).append(_LIBRARY.format(
            version = version,
            name = name,
            defines = repr(defines),
            linkopts = repr(ctx.attr.linkopts.get(key, []) + libs),
            deps = repr(ctx.attr.deps.get(key, [])),
        ))
    for key, program in ctx.attr.programs.items():
        package, name = _split(key)
        path = ctx.which(program)
        if not path:
            fail("\n%s is not installed.\n%s" % (program, hint))
        ctx.symlink(path, package + "/" + name if package else name)

        # A plug-in of protoc has no --version; the time it was installed stands for it.
        version = _run(ctx, ["stat", "-L", "-c", "%s bytes of %y", path], hint)
        packages.setdefault(package, []).append(_PROGRAM.format(version = version, name = name))
    for package, rules in packages.items():
        ctx.file(
            package + "/BUILD.bazel" if package else "BUILD.bazel",
            "package(default_visibility = [\"//visibility:public\"])\n" + "".join(rules),
            executable = False,
        )

# /usr/include is built into the compiler, so a library is its flags. The versions in the generated
# files make what depends on a library build again after an upgrade.
system_repository = repository_rule(
    implementation = _system_repository_impl,
    attrs = {
        "debian_package": attr.string(mandatory = True),
        "pkg_config": attr.string_list_dict(doc = "package:target -> pkg-config modules"),
        "linkopts": attr.string_list_dict(doc = "package:target -> what to link before those"),
        "deps": attr.string_list_dict(doc = "package:target -> labels"),
        "programs": attr.string_dict(doc = "package:target -> program on PATH"),
    },
    configure = True,
    local = True,
)

def _files_repository_impl(ctx):
    for label, path in ctx.attr.files.items():
        ctx.symlink(ctx.path(label), path)
    for path in ctx.attr.packages:
        ctx.file(path + "/BUILD.bazel" if path else "BUILD.bazel", "", executable = False)

# A repository made of files of this one, wherever this one is.
files_repository = repository_rule(
    implementation = _files_repository_impl,
    attrs = {
        "files": attr.label_keyed_string_dict(doc = "file -> path in the repository"),
        "packages": attr.string_list(doc = "packages that are empty but for their files"),
    },
    local = True,
)

def _npm_repository_impl(ctx):
    # Dangles until `npm ci` has run; then only what uses it fails.
    ctx.symlink(str(ctx.path(ctx.attr.lock_file).dirname) + "/node_modules", "node_modules")
    ctx.file("BUILD.bazel", "exports_files([\"node_modules\"])\n", executable = False)

# The folder that `npm ci` filled beside a lock file, as one label: @name//:node_modules.
npm_repository = repository_rule(
    implementation = _npm_repository_impl,
    attrs = {"lock_file": attr.label(mandatory = True, allow_single_file = True)},
    local = True,
)
