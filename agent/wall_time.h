// Microseconds since 1970, as events have them.
#ifndef AGENT_WALL_TIME_H_
#define AGENT_WALL_TIME_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace deka::agent {

inline int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// How long ago that was; nothing if it is still to come.
inline std::chrono::microseconds AgeOf(int64_t time_us) {
  return std::chrono::microseconds(std::max<int64_t>(NowUs() - time_us, 0));
}

}  // namespace deka::agent

#endif  // AGENT_WALL_TIME_H_
