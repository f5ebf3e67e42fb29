// A number that stands for bytes: to tell whether a request is the same again, without keeping it.
#ifndef AGENT_FINGERPRINT_H_
#define AGENT_FINGERPRINT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace deka::agent {

// The same for equal bytes in every process, very likely another for others. With a secret `seed`
// nobody who does not know it finds bytes for a number.
inline uint64_t Fingerprint(std::string_view bytes, uint64_t seed = 0) {
  constexpr uint64_t kOdd[] = {0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9};
  const auto fold = [](uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  uint64_t state = seed ^ kOdd[0];
  const uint64_t size = bytes.size();
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t taken = bytes.size() < 8 ? bytes.size() : 8;
    std::memcpy(&word, bytes.data(), taken);
    state = fold(state ^ word ^ kOdd[1], kOdd[0] ^ seed) + word;
    bytes.remove_prefix(taken);
  }
  return fold(state ^ kOdd[2], size ^ kOdd[1] ^ seed);
}

}  // namespace deka::agent

#endif  // AGENT_FINGERPRINT_H_
