#include "agent/log_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "ipc/error.h"

namespace deka::agent {

namespace {

// What a log of its own has.
struct Own {
  ~Own() { munmap(bytes.data(), bytes.size()); }

  RecordRing::Control control;
  ipc::Progress progress;
  std::span<char> bytes;
};

}  // namespace

absl::StatusOr<LogMemory> LogMemory::Create(size_t bytes_min) {
  const size_t size = (bytes_min + kPageBytes - 1) / kPageBytes * kPageBytes;
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return ipc::MakeError(
        ipc::Reason::kChildrenLimit,
        fmt::format(
            "No memory for a log of {} bytes: {}. End or forget some children, or give them "
            "smaller logs.",
            size, std::strerror(errno)));
  }
  // A huge page for a log of one event would cost 512 times what it holds.
  madvise(data, size, MADV_NOHUGEPAGE);
  auto own = std::make_shared<Own>();
  own->bytes = {static_cast<char*>(data), size};
  return LogMemory({.owner = own,
                    .number = 0,
                    .control = &own->control,
                    .progress = &own->progress,
                    .bytes = own->bytes});
}

void LogMemory::GiveBack(size_t begin, size_t end) {
  if (begin >= end) return;
  madvise(data() + begin, end - begin, part_.of_file ? MADV_REMOVE : MADV_DONTNEED);
}

}  // namespace deka::agent
