// What the system says of a process.
//
// Thread: any.
#ifndef TESTS_BENCHMARK_PROCESS_FIGURES_H_
#define TESTS_BENCHMARK_PROCESS_FIGURES_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace deka::benchmark {

// Of all its threads since it began.
absl::StatusOr<int64_t> CpuNs(pid_t pid);

struct Memory {
  int64_t resident_bytes = 0;    // Rss: pages that are shared with others too
  int64_t peak_bytes = 0;        // the most that it ever was
  int64_t page_table_bytes = 0;  // what the kernel needs to map them
};
absl::StatusOr<Memory> MemoryOf(pid_t pid);

absl::StatusOr<int> DescriptorsOf(pid_t pid);

// Raises this process' limit of descriptors to the hard one; as root that too.
void RaiseDescriptorLimit(size_t wanted);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_PROCESS_FIGURES_H_
