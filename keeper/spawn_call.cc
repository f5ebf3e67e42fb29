#include "keeper/spawn_call.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

namespace deka::keeper {

SpawnCall::~SpawnCall() {
  free(bytes_);
  free(arguments_);
  free(environment_);
}

int SpawnCall::Read(int file) {
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  const int seals = fcntl(file, F_GET_SEALS);
  struct stat status;
  if (seals < 0 || (seals & kSeals) != kSeals || fstat(file, &status) != 0) return EINVAL;
  const uint64_t size = static_cast<uint64_t>(status.st_size);
  if (size < sizeof(SpawnSpec) || size > SpawnSpec::kBytesMax) return EINVAL;

  // Read, not mapped: a page of a mapping that cannot be had would be a SIGBUS.
  bytes_ = static_cast<char*>(malloc(size));
  if (bytes_ == nullptr) return ENOMEM;
  for (uint64_t have = 0; have < size;) {
    const ssize_t got = pread(file, bytes_ + have, size - have, static_cast<off_t>(have));
    if (got <= 0) return EINVAL;
    have += static_cast<uint64_t>(got);
  }

  const SpawnSpec& s = *spec();
  if (s.magic != SpawnSpec::kMagic || s.bytes != size || s.arguments_count == 0 ||
      StringEnd(s.program) == 0 || (s.directory != 0 && StringEnd(s.directory) == 0) ||
      s.session > static_cast<uint32_t>(spawn::Session::kOwnSession) || s.has_user > 1 ||
      s.has_group > 1 || s.has_limit > 1 || s.unused != 0 ||
      s.descriptors_count > SpawnSpec::kDescriptorsMax) {
    return EINVAL;
  }
  for (uint32_t i = 0; i < s.descriptors_count; ++i) {
    if (s.descriptors[i] < 0) return EINVAL;
  }
  const int error = ReadStrings(s.arguments, s.arguments_count, arguments_);
  return error != 0 ? error : ReadStrings(s.environment, s.environment_count, environment_);
}

// Behind the string's NUL; 0 if there is no whole string.
size_t SpawnCall::StringEnd(uint64_t offset) const {
  if (offset < sizeof(SpawnSpec) || offset >= spec()->bytes) return 0;
  const void* nul = memchr(bytes_ + offset, '\0', spec()->bytes - offset);
  return nul == nullptr ? 0 : static_cast<size_t>(static_cast<const char*>(nul) - bytes_) + 1;
}

int SpawnCall::ReadStrings(uint64_t offset, uint64_t count, const char**& strings) {
  // The end of the file is where no strings may stand.
  if (offset < sizeof(SpawnSpec) || offset > spec()->bytes || count > spec()->bytes - offset) {
    return EINVAL;
  }
  strings = static_cast<const char**>(malloc((count + 1) * sizeof(char*)));
  if (strings == nullptr) return ENOMEM;
  for (uint64_t i = 0; i < count; ++i) {
    strings[i] = bytes_ + offset;
    offset = StringEnd(offset);
    if (offset == 0) return EINVAL;
  }
  strings[count] = nullptr;
  return 0;
}

const spawn::Options& SpawnCall::For(const int* descriptors, const rlimit* limit) {
  const SpawnSpec& s = *spec();
  user_ = s.user;
  group_ = s.group;
  limit_ = {.rlim_cur = s.limit_soft, .rlim_max = s.limit_hard};
  for (uint32_t i = 0; i < s.descriptors_count; ++i) {
    mappings_[i] = {.from = descriptors[i], .to = s.descriptors[i]};
  }

  options_.program = bytes_ + s.program;
  options_.arguments = arguments_;
  options_.environment = environment_;
  options_.descriptors = mappings_;
  options_.descriptors_count = s.descriptors_count;
  options_.session = static_cast<spawn::Session>(s.session);
  options_.descriptors_limit = s.has_limit != 0 ? &limit_ : limit;
  options_.directory = s.directory != 0 ? bytes_ + s.directory : nullptr;
  options_.user = s.has_user != 0 ? &user_ : nullptr;
  options_.group = s.has_group != 0 ? &group_ : nullptr;
  return options_;
}

}  // namespace deka::keeper
