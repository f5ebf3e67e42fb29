// What a SpawnSpec asks for, read from its file, checked, and laid out for spawn::Spawn().
//
// Uses nothing but libc, and no C++ runtime.
#ifndef KEEPER_SPAWN_CALL_H_
#define KEEPER_SPAWN_CALL_H_

#include <sys/resource.h>

#include <cstddef>
#include <cstdint>

#include "keeper/protocol.h"
#include "spawn/spawn.h"

namespace deka::keeper {

class SpawnCall {
 public:
  SpawnCall() = default;
  ~SpawnCall();

  SpawnCall(const SpawnCall&) = delete;
  SpawnCall& operator=(const SpawnCall&) = delete;

  // Copies the file, which stays the caller's. Returns 0 or errno: EINVAL if it is no sealed memfd
  // or not all of it is as SpawnSpec says, ENOMEM. Once.
  int Read(int file);

  // After Read() has returned 0. `descriptors`, `descriptors_count` of the spec, are what the child
  // gets. `limit` is for a spec that has none. What is returned points into this and to `limit`.
  const spawn::Options& For(const int* descriptors, const rlimit* limit);
  size_t descriptors_count() const { return spec()->descriptors_count; }

 private:
  const SpawnSpec* spec() const { return reinterpret_cast<const SpawnSpec*>(bytes_); }
  size_t StringEnd(uint64_t offset) const;
  int ReadStrings(uint64_t offset, uint64_t count, const char**& strings);

  char* bytes_ = nullptr;
  const char** arguments_ = nullptr;
  const char** environment_ = nullptr;
  uid_t user_ = 0;
  gid_t group_ = 0;
  rlimit limit_ = {};
  spawn::DescriptorMapping mappings_[SpawnSpec::kDescriptorsMax] = {};
  spawn::Options options_;
};

}  // namespace deka::keeper

#endif  // KEEPER_SPAWN_CALL_H_
