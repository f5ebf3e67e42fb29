#include "sdk/cpp/request_id.h"

#include <stdlib.h>
#include <sys/random.h>

#include <array>
#include <cstdint>

#include "fmt/format.h"

namespace deka {

std::string NewRequestId() {
  std::array<uint64_t, 2> random;
  // So few bytes are never cut short, and the call fails only where the kernel has none.
  if (getrandom(random.data(), sizeof(random), 0) != sizeof(random)) {
    abort();
  }
  return fmt::format("{:016x}{:016x}", random[0], random[1]);
}

}  // namespace deka
