// The memory of one log: the control of its ring, how far the child's streams were told, and room
// for all records, of which only the pages that were touched cost memory.
#ifndef AGENT_LOG_MEMORY_H_
#define AGENT_LOG_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "agent/record_ring.h"
#include "ipc/stream_memory.h"

namespace deka::agent {

// Thread: any, one at a time; the bytes are whoever's reads and writes them.
class LogMemory {
 public:
  static constexpr size_t kPageBytes = 4096;

  // Anonymous memory of its own: at least `bytes_min` bytes, whole pages, all zero. Fails with
  // kChildrenLimit if the system gives no more.
  static absl::StatusOr<LogMemory> Create(size_t bytes_min);

  // Part of a larger memory, which lives as long as `owner`. `number`: the child's.
  struct Part {
    std::shared_ptr<void> owner;
    uint64_t number = 0;
    RecordRing::Control* control = nullptr;
    ipc::Progress* progress = nullptr;
    std::span<char> bytes;  // whole pages
    bool of_file = false;   // mapped from a file, shared
  };
  explicit LogMemory(Part part) : part_(std::move(part)) {}

  uint64_t number() const { return part_.number; }
  RecordRing::Control& control() const { return *part_.control; }
  ipc::Progress& progress() const { return *part_.progress; }
  char* data() const { return part_.bytes.data(); }
  size_t size() const { return part_.bytes.size(); }

  // Gives the pages of [begin, end) back, both multiples of kPageBytes: they are zero again and
  // cost nothing until they are touched.
  void GiveBack(size_t begin, size_t end);

 private:
  Part part_;
};

}  // namespace deka::agent

#endif  // AGENT_LOG_MEMORY_H_
