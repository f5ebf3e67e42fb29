// A SpawnCall of any file is refused, or points to whole strings and small numbers.
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "keeper/spawn_call.h"

namespace {

void Check(bool holds) {
  if (!holds) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int file = memfd_create("spec", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  Check(file >= 0 && write(file, data, size) == static_cast<ssize_t>(size));
  // What libFuzzer cannot guess is set right.
  const uint64_t bytes = size;
  if (size >= 16) {
    Check(pwrite(file, &deka::keeper::SpawnSpec::kMagic, 8, 0) == 8);
    Check(pwrite(file, &bytes, 8, 8) == 8);
  }
  Check(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);

  deka::keeper::SpawnCall call;
  if (call.Read(file) == 0) {
    Check(call.descriptors_count() <= deka::keeper::SpawnSpec::kDescriptorsMax);
    const int descriptors[deka::keeper::SpawnSpec::kDescriptorsMax] = {};
    const rlimit limit = {};
    const deka::spawn::Options& options = call.For(descriptors, &limit);
    size_t length = strlen(options.program);
    if (options.directory != nullptr) length += strlen(options.directory);
    Check(options.arguments[0] != nullptr);
    for (const char* const* a = options.arguments; *a != nullptr; ++a) length += strlen(*a);
    for (const char* const* e = options.environment; *e != nullptr; ++e) length += strlen(*e);
    Check(length <= 4 * size);
    for (size_t i = 0; i < options.descriptors_count; ++i) Check(options.descriptors[i].to >= 0);
  }
  close(file);
  return 0;
}
