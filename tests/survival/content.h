// What the parties of a storm say: a function of who says it and of its number, so that whoever
// sees it can tell whether it is whole, without a record of what was said.
#ifndef TESTS_SURVIVAL_CONTENT_H_
#define TESTS_SURVIVAL_CONTENT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace deka::storm {

inline constexpr std::string_view kStop = R"({"stop":true})";

// The largest value, and line, that is made here is shorter.
inline constexpr size_t kMessageBytesMax = 64 << 10;

inline uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Mix(state_ += 0x9E3779B97F4A7C15); }
  uint64_t Below(uint64_t limit) { return limit == 0 ? 0 : Next() % limit; }
  uint64_t Between(uint64_t first, uint64_t last) { return first + Below(last - first + 1); }

 private:
  uint64_t state_;
};

inline uint64_t HashOf(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  return hash;
}

// Mostly short, at times a few KiB, seldom as long as half a message may be.
inline std::string PadOf(uint64_t seed, uint64_t number, std::string_view prefix) {
  const uint64_t draw = Mix(seed ^ Mix(number));
  size_t bytes = draw % 200;
  if (draw >> 40 & 1 && (draw >> 32) % 61 == 0) bytes = draw % 4096;
  if ((draw >> 20) % 1021 == 0) bytes = draw % (kMessageBytesMax / 2);
  std::string pad(prefix);
  pad.reserve(prefix.size() + bytes);
  for (size_t i = 0; i < bytes; ++i) {
    pad += static_cast<char>('a' + (draw >> (i % 53)) % 26);
  }
  return pad;
}

inline bool IsEven(uint64_t number) { return number % 2 == 0; }

// The `number`th message of a child, from 1. `rest` is a piece of JSON.
inline std::string MessageOf(uint64_t number, std::string_view rest) {
  std::string text = "{\"n\":";
  text += std::to_string(number);
  text += IsEven(number) ? R"(,"kind":"even",)" : R"(,"kind":"odd",)";
  text += rest;
  text += '}';
  return text;
}

inline std::string MessageOf(uint64_t seed, uint64_t number) {
  return MessageOf(number, PadOf(seed, number, R"("pad":")") + '"');
}

inline std::string EchoOf(uint64_t number, uint64_t receipt) {
  return MessageOf(number, "\"echo\":\"" + std::to_string(receipt) + '"');
}

// The `number`th line of stdout (0) or stderr (1), from 1. Some are longer than the pieces in which
// an agent shows them.
inline std::string LineOf(uint64_t seed, int stream, uint64_t number) {
  std::string line = std::to_string(number) + ' ';
  line += PadOf(seed + 1 + static_cast<uint64_t>(stream), number, "");
  if (Mix(seed + number) % 257 == 0) line.append(100'000, 'L');
  return line;
}

// The `number`th message of a sender.
inline std::string SendOf(std::string_view sender, uint64_t number, size_t bytes) {
  std::string text = "{\"from\":\"";
  text += sender;
  text += "\",\"n\":";
  text += std::to_string(number);
  text += ",\"pad\":\"";
  text.append(bytes, static_cast<char>('a' + number % 26));
  text += "\"}";
  return text;
}

}  // namespace deka::storm

#endif  // TESTS_SURVIVAL_CONTENT_H_
