#include "agent/log_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "ipc/error.h"

namespace deka::agent {

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
  return LogMemory(static_cast<char*>(data), size);
}

LogMemory::LogMemory(LogMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

LogMemory& LogMemory::operator=(LogMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

LogMemory::~LogMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

void LogMemory::GiveBack(size_t begin, size_t end) {
  if (begin < end) madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace deka::agent
