"""The house's C++ rules: Bazel's own, with our language level and warnings.

The flags are in `copts`, so only our own code gets them: neither generated code nor, in a workspace
that depends on this one, anybody else's.
"""

# Everything of ours is C++20, whatever flags the workspace that builds it has.
CXX = ["-std=c++20"]

_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
    "-Wimplicit-fallthrough",
    "-Wundef",
]

# When it optimises, gcc 12 guesses, and guesses wrong about std::string.
_GUESSES = [
    "-Wno-maybe-uninitialized",
    "-Wno-restrict",
]

def _copts(copts):
    # A warning that a newer compiler finds must not break the build of who depends on us.
    own_workspace = native.repository_name() == "@"
    return CXX + _WARNINGS + copts + select({
        str(Label("//bazel:optimised")): _GUESSES,
        "//conditions:default": ["-Werror"] if own_workspace else [],
    })

def deka_cc_library(name, copts = [], **kwargs):
    """cc_library."""
    native.cc_library(name = name, copts = _copts(copts), **kwargs)

def deka_cc_binary(name, copts = [], **kwargs):
    """cc_binary."""
    native.cc_binary(name = name, copts = _copts(copts), **kwargs)

def deka_cc_test(name, size = "small", copts = [], deps = [], main = True, **kwargs):
    """cc_test, small (one minute) unless it says otherwise, with GoogleTest and its main.

    Args:
      name: as in cc_test
      size: as in cc_test
      copts: as in cc_test
      deps: as in cc_test
      main: False for a test that has a main function of its own; GoogleTest is there all the same
      **kwargs: as in cc_test
    """
    googletest = "@com_google_googletest//:gtest_main" if main else "@com_google_googletest//:gtest"
    native.cc_test(
        name = name,
        size = size,
        copts = _copts(copts),
        deps = deps + [googletest],
        **kwargs
    )

def deka_cc_fuzz_test(name, srcs, corpus, copts = [], deps = [], size = "small", **kwargs):
    """A fuzz target: sources that define LLVMFuzzerTestOneInput.

    Makes two tests:

    * `name`, under any compiler: runs the empty input and every file of the corpus.
    * `name`_libfuzzer, under --config=fuzz: starts from the corpus and looks for more, five seconds
      or --test_arg=-max_total_time=SECONDS. What it finds lies in the test's outputs.zip.

    Args:
      name: of the test
      srcs: the target's sources
      corpus: a folder of this package, every file below it an input; not empty
      copts: as in cc_test
      deps: as in cc_test
      size: of the test
      **kwargs: as in cc_test
    """
    inputs = native.glob([corpus + "/**"])
    if not inputs:
        fail("%s: the corpus %s/ is empty; put at least one interesting input in it" % (name, corpus))
    native.filegroup(
        name = name + "_corpus",
        testonly = True,
        srcs = inputs,
    )
    native.cc_test(
        name = name,
        size = size,
        srcs = srcs,
        copts = _copts(copts),
        args = ["$(rootpaths :%s_corpus)" % name],
        data = [name + "_corpus"],
        deps = deps + [Label("//bazel:fuzz_replay_main")],
        **kwargs
    )

    # Only clang has libFuzzer, so these two are built when they are asked for.
    native.cc_binary(
        name = name + "_libfuzzer_bin",
        testonly = True,
        srcs = srcs,
        copts = _copts(copts),
        linkopts = ["-fsanitize=fuzzer"],
        tags = ["manual"],
        deps = deps,
    )
    native.sh_test(
        name = name + "_libfuzzer",
        size = "large",
        srcs = [Label("//bazel:libfuzzer.sh")],
        args = ["$(rootpath :%s_libfuzzer_bin)" % name, native.package_name() + "/" + corpus],
        data = [
            name + "_corpus",
            name + "_libfuzzer_bin",
        ],
        tags = ["libfuzzer", "manual"],
    )
