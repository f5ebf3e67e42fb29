// What ipc/ writes to stderr for a developer, and when.
//
//   DEKA_IPC_DEBUG=1  every frame of every channel: direction, channel, size, bytes
//   DEKA_VERBOSE=1    what happens to channels and children
//
// The environment is read once, at the first question. Thread: any.
#ifndef IPC_LOG_H_
#define IPC_LOG_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace deka::ipc {

// How a line begins, for spdlog: time, process, who writes it, how much it matters.
inline constexpr char kLogPattern[] = "%H:%M:%S.%e %P %n %^%l%$ %v";

bool FrameLogOn();
bool VerboseLogOn();

enum class FrameDirection { kReceived, kSent };

// Frames are cut here.
inline constexpr size_t kLoggedBytesMax = 512;

// One line, if FrameLogOn(). `bytes` begins the frame of `size_bytes`.
void LogFrame(FrameDirection direction, std::string_view channel, std::string_view bytes,
              uint64_t size_bytes);

// One line, if VerboseLogOn().
void LogVerbose(std::string_view text);

// `bytes`, cut at `bytes_max`, as one line that a terminal shows as it is: control characters (see
// IsControl), backslashes and bytes that are no UTF-8 are written as escapes, "\x1b" for a byte.
std::string Escaped(std::string_view bytes, size_t bytes_max);

}  // namespace deka::ipc

#endif  // IPC_LOG_H_
