// The bytes of one log: room for all of it, of which only the pages that were touched cost memory.
#ifndef AGENT_LOG_MEMORY_H_
#define AGENT_LOG_MEMORY_H_

#include <cstddef>

#include "absl/status/statusor.h"

namespace deka::agent {

// Anonymous memory. Thread: any, one at a time; the bytes are whoever's reads and writes them.
class LogMemory {
 public:
  static constexpr size_t kPageBytes = 4096;

  // At least `bytes_min` bytes, whole pages, all zero. Fails with kChildrenLimit if the system
  // gives no more.
  static absl::StatusOr<LogMemory> Create(size_t bytes_min);

  LogMemory(LogMemory&& other) noexcept;
  LogMemory& operator=(LogMemory&& other) noexcept;
  // Gives everything back.
  ~LogMemory();

  char* data() const { return data_; }
  size_t size() const { return size_; }

  // Gives the pages of [begin, end) back, both multiples of kPageBytes: they are zero again and
  // cost nothing until they are touched.
  void GiveBack(size_t begin, size_t end);

 private:
  LogMemory(char* data, size_t size) : data_(data), size_(size) {}

  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace deka::agent

#endif  // AGENT_LOG_MEMORY_H_
